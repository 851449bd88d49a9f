"""A folder of images: `path/<class>/x.jpg` at any depth, or flat.

Which images and in which order follows from the names and the seed alone, never from the directory listing: in every
folder the files are ranked by SHA-256 of (seed, relative path), then the ranks are dealt one folder after another. So
any prefix is spread evenly over the classes, and the 8 samples of `samples = 8` are the first 8 of `samples = 64`.

Labels come from a classes file only (line i = class i): the class of an image is the innermost folder on its path that
the file names. Folders are never numbered by sorting them: a subset of the classes would shift every number.

Corrupt images are named, skipped and counted; more than 1 % of the chosen ones is an error. The next batch is decoded
in one background thread (Pillow releases the GIL), so memory is two batches.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.preprocess import Geometry, for_input
from gpusq_onnx.data.source import Batch, InputSpec, Source, fill_up
from gpusq_onnx.errors import UnsupportedDataError, UsageError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
MAX_CORRUPT = 0.01


class ImageFolder(Source):
    """The images under `options.path`, prepared for one image input.

    Raises on opening: UsageError (classes file missing, option against the model), UnsupportedDataError (no images,
    folders that the classes file does not name).
    """

    kind = "images"

    def __init__(self, options: DataOptions, spec: InputSpec) -> None:
        if options.path is None:
            raise ValueError("ImageFolder needs options.path")
        self._root = options.path
        self._preprocess = for_input(options, spec)
        files, ignored = list_images(self._root)
        if not files:
            raise UnsupportedDataError(
                f"no images in {self._root}",
                expected="files ending in " + ", ".join(EXTENSIONS),
                found=f"{ignored} other files" if ignored else "an empty folder",
            )
        labels = None if options.classes is None else _labels(files, options.classes)
        chosen = _ranked(files, options.seed)[: options.samples]
        self._chosen = [files[index] for index in chosen]
        self._labels = None if labels is None else np.array([labels[index] for index in chosen], dtype=np.int64)
        self.labelled = labels is not None
        self._corrupt: dict[int, str] = {}
        self._geometry: dict[int, Geometry] = {}
        self._opening_notes = _opening_notes(options, spec, len(files), ignored)

    def __len__(self) -> int:
        return len(self._chosen)

    def batches(self, batch: int) -> Iterator[Batch]:
        size = self._preprocess.spec.static_batch or batch
        chunks = [range(start, min(start + size, len(self))) for start in range(0, len(self), size)]
        # One worker: batches come in order, and leaving early waits for one batch at most.
        with ThreadPoolExecutor(max_workers=1) as pool:
            pending = pool.submit(self._load, chunks[0])
            for chunk in chunks[1:]:
                loaded, pending = pending.result(), pool.submit(self._load, chunk)
                if loaded is not None:
                    yield loaded
            loaded = pending.result()
        if loaded is not None:
            yield loaded

    def digest(self) -> str:
        whole = hashlib.sha256()
        for name in self._chosen:
            whole.update(name.encode("utf-8", "surrogateescape") + b"\0")
            try:
                whole.update(hashlib.sha256((self._root / name).read_bytes()).digest())
            except OSError:  # `batches` names and skips it
                whole.update(b"unreadable")
        return whole.hexdigest()

    @property
    def skipped(self) -> list[str]:
        return [f"{self._chosen[index]}: {reason}" for index, reason in sorted(self._corrupt.items())]

    @property
    def notes(self) -> list[str]:
        notes = list(self._opening_notes)
        done = Counter(self._geometry.values())
        crop = f"{self._preprocess.height}x{self._preprocess.width}"
        if done["cropped only"]:
            notes.append(f"{done['cropped only']} images no larger than the resize were cropped only")
        if done["enlarged"]:
            notes.append(f"{done['enlarged']} images smaller than the crop {crop} were enlarged to it")
        return notes

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "preprocess": self._preprocess.describe()}

    def _load(self, chunk: range) -> Batch | None:
        """The readable images of `chunk`; None when there is none."""
        rows = np.empty((len(chunk), *self._preprocess.shape), dtype=self._preprocess.spec.dtype)
        kept: list[int] = []
        for index in chunk:
            image = self._decode(index)
            if image is not None:
                self._geometry[index] = self._preprocess.write(image, rows[len(kept)])
                kept.append(index)
        if not kept:
            return None
        labels = None if self._labels is None else self._labels[kept]
        filled = fill_up(rows[: len(kept)], self._preprocess.spec.static_batch)
        return Batch({self._preprocess.spec.name: filled}, labels, len(kept))

    def _decode(self, index: int) -> Image.Image | None:
        try:
            with Image.open(self._root / self._chosen[index]) as image:
                image.load()  # reads to the end: leaving `with` closes the file, the pixels stay
                return image
        except Exception as error:  # Pillow's decoders raise whatever the bytes make them raise
            self._corrupt[index] = str(error) or type(error).__name__
        if len(self._corrupt) > MAX_CORRUPT * len(self):
            raise UnsupportedDataError(
                f"{len(self._corrupt)} of {len(self)} images cannot be read",
                where=str(self._root),
                expected=f"at most {MAX_CORRUPT:.0%}",
                found="; ".join(self.skipped[:5]),
                hint="remove or replace these files",
            )
        return None


def list_images(root: Path) -> tuple[list[str], int]:
    """Image files under `root` as sorted relative POSIX paths, and how many other files there are.

    Links to folders are followed, each folder once; hidden files (`._x.jpg` of macOS) count as neither.
    """
    images: list[str] = []
    other = 0
    seen: set[str] = set()
    for folder, below, names in os.walk(root, followlinks=True):
        # Sorted, so that of two links to one folder the same one is taken everywhere.
        below[:] = sorted(name for name in below if not name.startswith("."))
        real = os.path.realpath(folder)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        relative = Path(folder).relative_to(root)
        for name in names:
            if name.startswith("."):
                continue
            if name.lower().endswith(EXTENSIONS):
                images.append((relative / name).as_posix())
            else:
                other += 1
    return sorted(images), other


def read_classes(file: Path) -> dict[str, int]:
    """Class name -> index: line i (from 0) names class i; any line ending, UTF-8. Raises UsageError."""
    try:
        text = file.read_text(encoding="utf-8-sig")
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


def _labels(files: Sequence[str], classes: Path) -> list[int]:
    """The class index of each file; raises UnsupportedDataError naming the folders that `classes` does not know."""
    known = read_classes(classes)
    labels: list[int] = []
    unknown: set[str] = set()
    for name in files:
        folders = name.split("/")[:-1]
        index = next((known[folder] for folder in reversed(folders) if folder in known), None)
        if index is None:
            unknown.add("/".join(folders) or ".")
        else:
            labels.append(index)
    if unknown:
        first = sorted(unknown)
        near = difflib.get_close_matches(first[0], known, n=1)
        raise UnsupportedDataError(
            f"{len(unknown)} folders of images are not named in {classes}",
            expected=f"one of its {len(known)} names, such as {next(iter(known))!r}",
            found=", ".join(first[:10]) + (", …" if len(first) > 10 else ""),
            hint=f"did you mean {near[0]!r}?" if near else "leave the classes file out if labels are not needed",
        )
    return labels


def _ranked(files: Sequence[str], seed: int) -> list[int]:
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


def _opening_notes(options: DataOptions, spec: InputSpec, available: int, ignored: int) -> list[str]:
    notes = []
    if options.samples is not None and options.samples > available:
        notes.append(f"{options.samples} samples asked for, {available} there are: all of them are used")
    if ignored:
        notes.append(f"{ignored} files that are not images were ignored")
    if spec.dtype.name == "uint8":
        notes.append(f"input {spec.name!r} takes uint8: pixels go in as 0..255, mean and std are not applied")
    return notes
