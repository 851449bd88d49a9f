"""Which images a folder holds, in which order they are taken, and their labels: names only, no image is opened.

Layout: `root/<class>/x.jpg` at any depth, or flat.

Order follows from the names and the seed alone, never from the directory listing: in every folder the files are ranked
by SHA-256 of (seed, relative path), then the ranks are dealt one folder after another. So any prefix is spread evenly
over the classes, and the 8 samples of `samples = 8` are the first 8 of `samples = 64`.

Labels come from a classes file only (line i = class i): the class of an image is the innermost folder on its path that
the file names. Folders are never numbered by sorting them: a subset of the classes would shift every number.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.errors import UnsupportedDataError, UsageError
from gpusq_onnx.parsing import read_bytes

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def shards(path: Path, suffix: str) -> list[Path]:
    """The files of a set in parts, in the order of their names: those in the folder `path`, or `path` itself.

    What is no regular file is none of them: reading a pipe might never end.
    """
    if path.is_dir():
        return sorted(part for part in path.glob(f"*{suffix}") if part.is_file())
    return [path] if path.suffix == suffix else []


def counted(number: int, noun: str) -> str:
    """A number of things in words.

    >>> counted(1, "file"), counted(2, "file")
    ('1 file', '2 files')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def list_images(root: Path) -> tuple[list[str], int]:
    """Image files under `root` as sorted relative POSIX paths, and how many other files there are.

    Links to folders are followed, each folder once; hidden files (`._x.jpg` of macOS) count as neither. What is no
    regular file (a pipe, a device, a link to one) is no image, whatever its name: reading it might never end.
    """
    images: list[str] = []
    other = 0
    seen: set[str] = set()
    pending = [""]
    while pending:
        relative = pending.pop()
        folder = os.path.join(root, relative)
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        below = []
        for entry in _entries(folder):
            if entry.is_dir():
                below.append(f"{relative}{entry.name}/")
            elif entry.name.lower().endswith(EXTENSIONS) and entry.is_file():
                images.append(f"{relative}{entry.name}")
            else:
                other += 1
        # Sorted, so that of two links to one folder the same one is taken everywhere.
        pending += sorted(below, reverse=True)
    return sorted(images), other


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """What is in a folder, without hidden things; nothing where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError:
        return []


def read_classes(file: Path) -> dict[str, int]:
    """Class name -> index: line i (from 0) names class i; any line ending, UTF-8. Raises UsageError."""
    try:
        text = read_bytes(file, "--classes").decode("utf-8-sig")
    except FileNotFoundError:
        raise UsageError(f"classes file not found: {file}", where="--classes") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the classes file {file}", where="--classes", found=str(error)) from error
    names = [line.strip() for line in text.rstrip().splitlines()]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if not names or repeated:
        raise UsageError(
            f"the classes file {file} " + (f"names {repeated[0]!r} more than once" if repeated else "is empty"),
            where="--classes",
            expected="one folder name a line, line i naming class i",
        )
    return {name: index for index, name in enumerate(names)}


def labels_of(files: Sequence[str], classes: Path) -> list[int]:
    """The class index of each file; raises UnsupportedDataError naming the folders that `classes` does not know."""
    known = read_classes(classes)
    labels: list[int] = []
    unknown: set[str] = set()
    for name in files:
        folders = name.split("/")[:-1]
        index = next((known[folder] for folder in reversed(folders) if folder in known), None)
        if index is None:
            unknown.add("/".join(folders) or "(no folder)")
        else:
            labels.append(index)
    if unknown:
        first = sorted(unknown)
        near = difflib.get_close_matches(first[0], known, n=1)
        raise UnsupportedDataError(
            f"{classes} does not name {counted(len(unknown), 'folder')} of images",
            expected=f"one of its {len(known)} names, such as {next(iter(known))!r}",
            found=", ".join(first[:10]) + (", …" if len(first) > 10 else ""),
            hint=f"did you mean {near[0]!r}?" if near else "leave the classes file out if labels are not needed",
        )
    return labels


def spread(total: int, labels: NDArray[np.int64] | None, samples: int | None, seed: int) -> range | NDArray[np.int64]:
    """Ascending numbers of the rows to use of `total`: all, or `samples` of them, as many of each class as can be."""
    if samples is None or samples >= total:
        return range(total)
    classes = np.zeros(total, np.int64) if labels is None else labels
    names = [f"{label}/{row:09}" for row, label in enumerate(classes)]
    return np.sort(np.array(sample_order(names, seed)[:samples], np.int64))


def sample_order(files: Sequence[str], seed: int) -> list[int]:
    """Indices of `files` in the order in which samples are taken."""

    def key(text: str) -> bytes:
        # NFC: macOS hands out decomposed names for what Linux stores composed.
        text = unicodedata.normalize("NFC", text)
        return hashlib.sha256(f"{seed}/{text}".encode("utf-8", "surrogateescape")).digest()

    by_folder: dict[str, list[tuple[bytes, int]]] = {}
    for index, name in enumerate(files):
        by_folder.setdefault(name.rpartition("/")[0], []).append((key(name), index))
    dealt = [
        (rank, folder_key, index)
        for folder, keyed in by_folder.items()
        for folder_key in [key(folder)]
        for rank, (_, index) in enumerate(sorted(keyed))
    ]
    return [index for _, _, index in sorted(dealt)]
