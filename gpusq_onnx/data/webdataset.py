"""WebDataset shards: tar files whose members `KEY.jpg` (an image) and `KEY.cls` (its class index) make one sample.

Opening reads the archives' headers and the labels, no image; after that every image is read from its place in the tar
file, in any order. Members of other kinds are left alone. `samples = k` takes k samples spread evenly over the classes,
chosen by the seed, in the archives' order.

Source: github.com/webdataset/webdataset, "the WebDataset format". Limits: shards on this machine's disks, uncompressed.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpusq_onnx.data.images import Images
from gpusq_onnx.data.listing import EXTENSIONS, shards, spread
from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.source import ImageInputs
from gpusq_onnx.errors import UnsupportedDataError

LABEL = ".cls"
_DIGITS = 18  # a label's bytes; more are no class index


class _Place(NamedTuple):
    """Where an image's bytes lie."""

    file: int
    offset: int
    size: int
    key: str


class WebDataset(Images):
    """The images of a tar file, or of all files `*.tar` of a folder in the order of their names.

    Raises on opening: UnsupportedDataError (no tar file, no images, a label that is no integer).
    """

    kind = "webdataset"

    def __init__(self, path: Path, options: DataOptions, inputs: ImageInputs) -> None:
        self._files = shards(path, ".tar")
        places: list[_Place] = []
        found: list[int | None] = []
        for number, file in enumerate(self._files):
            for place, label in _samples(file, number):
                places.append(place)
                found.append(label)
        if not places:
            raise UnsupportedDataError(
                f"no images in {path}", expected="members KEY.jpg and KEY.cls; images end in " + ", ".join(EXTENSIONS)
            )
        known = [label for label in found if label is not None]
        labels = np.array(known, np.int64) if len(known) == len(found) else None
        rows = spread(len(places), labels, options.samples, options.seed)
        self._places = [places[row] for row in rows]
        chosen = None if labels is None else labels[np.asarray(rows)]
        ignored = ["the classes file is not needed: the labels are class indices already"] if options.classes else []
        if known and labels is None:
            ignored.append(f"{len(found) - len(known)} of {len(found)} images have no label: labels are not used")
        super().__init__(path, options, inputs, len(self._places), chosen, len(places), ignored)

    def digest(self) -> str:
        whole = hashlib.sha256()
        for index in range(len(self)):
            label = b"" if self.labels is None else str(self.labels[index]).encode()
            whole.update(hashlib.sha256(self._bytes(index)).digest() + label + b"\0")
        return whole.hexdigest()

    def name(self, index: int) -> str:
        place = self._places[index]
        return f"{self._files[place.file].name}/{place.key}"

    def _file(self, index: int, in_order: bool) -> Path | BytesIO:
        return BytesIO(self._bytes(index))

    def _bytes(self, index: int) -> bytes:
        place = self._places[index]
        with self._files[place.file].open("rb") as shard:
            shard.seek(place.offset)
            return shard.read(place.size)


def _samples(file: Path, number: int) -> Iterator[tuple[_Place, int | None]]:
    """The images of one shard with their labels, in the order of the images."""
    images: dict[str, _Place] = {}
    labels: dict[str, int] = {}
    try:
        end = file.stat().st_size
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                stem, dot, extension = name.partition(".")
                key = f"{folder}/{stem}"
                if not member.isfile() or member.issparse():
                    continue
                if member.offset_data + member.size > end:
                    raise ValueError(f"the member {member.name!r} goes on past the end of the file")
                if (dot + extension).lower() in EXTENSIONS:
                    images.setdefault(key, _Place(number, member.offset_data, member.size, member.name))
                elif dot + extension == LABEL:
                    content = archive.extractfile(member)
                    labels[key] = _label(b"" if content is None else content.read(_DIGITS), member.name)
    except Exception as error:  # tarfile's errors, and what strange headers make of others
        raise UnsupportedDataError(
            f"cannot read {file}",
            expected="an uncompressed tar file; class indices in its .cls members",
            found=str(error),
        ) from error
    for key, place in images.items():
        yield place, labels.get(key)


def _label(text: bytes, name: str) -> int:
    digits = text.strip()
    if not digits.isdigit() or len(text) == _DIGITS:
        raise ValueError(f"the label in {name!r} is no class index: {text!r}")
    return int(digits)
