"""Encoded images as samples, wherever their bytes lie: decode, prepare, skip what is corrupt.

Corrupt images are named, skipped and counted; more than 1 % of the chosen ones is an error. Going through all of them,
the next batch is decoded in one background thread; memory is three batches: the one in use, the next, the one after.

How an image becomes a tensor is the part of `preprocess`; where it comes from, of `folder`, `parquet`, `webdataset`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gpusq_onnx.data.decode import decoded
from gpusq_onnx.data.masks import read_label_map
from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.prefetch import ahead
from gpusq_onnx.data.preprocess import GEOMETRIES, for_input
from gpusq_onnx.data.source import Batch, Box, ImageInputs, Source, too_few
from gpusq_onnx.errors import UnsupportedDataError

MAX_CORRUPT = 0.01
_LOOKED_AT = 100  # images that are tried, to say how many are corrupt, once too many are
_NAMED = 5


class Images(Source):
    """Base of the sources of encoded images.

    Args:
        where: for errors: the folder or file.
        labels: int64[n] class indices of the chosen images, or None.
        available: how many images there are to choose from.
    """

    kind = "images"
    croppable = True

    def __init__(
        self,
        where: Path,
        options: DataOptions,
        inputs: ImageInputs,
        count: int,
        labels: NDArray[np.int64] | None,
        available: int,
        notes: Sequence[str] = (),
    ) -> None:
        self._root = where
        self._inputs, spec = inputs, inputs.image
        self._preprocess = for_input(options, spec)
        self.static_batch = spec.static_batch
        self.input_size = self._preprocess.height, self._preprocess.width
        self._ids: NDArray[np.int64] | None = None  # of the chosen images, in their annotations
        self._maps: Sequence[Path] | None = None  # the chosen images' label maps
        self._reduce_zero_label, self._max_pixels = options.reduce_zero_label, options.max_pixels
        self._count, self.labels = count, labels
        self.labelled = labels is not None
        self._corrupt: dict[int, str] = {}
        self._geometry = np.zeros(count, np.uint8)  # of each image: what was done to it, 1 + its place in GEOMETRIES
        self._opening_notes = [*too_few(options.samples, available), *notes]
        if spec.dtype.name == "uint8":
            raw = f"input {spec.name!r} takes uint8: pixels go in as 0..255, mean and std are not applied"
            self._opening_notes.append(raw)

    @abstractmethod
    def name(self, index: int) -> str:
        """What the image is called: for errors and notes."""

    @abstractmethod
    def _file(self, index: int, in_order: bool) -> Path | BytesIO:
        """Where the encoded bytes are; `in_order` while going through all images from the first to the last."""

    def __len__(self) -> int:
        return self._count

    def batches(self, batch: int) -> Iterator[Batch]:
        size = self.static_batch or batch
        chunks = [range(start, min(start + size, len(self))) for start in range(0, len(self), size)]
        for loaded in ahead(lambda chunk: self._load(chunk, None, in_order=True), chunks):
            if loaded.size:
                yield loaded.filled(self.static_batch)

    def read(self, indices: Sequence[int], boxes: Sequence[Box] | None = None) -> Batch:
        return self._load(indices, boxes, in_order=False)

    @property
    def skipped(self) -> list[str]:
        return [f"{self.name(index)}: {reason}" for index, reason in sorted(self._corrupt.items())]

    @property
    def notes(self) -> list[str]:
        notes = list(self._opening_notes)
        if self._corrupt:
            count = f"{len(self._corrupt)} of {len(self)} images cannot be read and are left out"
            notes.append(f"{count}: {self._first_corrupt()}")
        done = {name: int((self._geometry == 1 + code).sum()) for code, name in enumerate(GEOMETRIES)}
        crop = f"{self._preprocess.height}x{self._preprocess.width}"
        if done["cropped only"]:
            limit = f"no longer than {self._preprocess.resize} px"
            notes.append(
                f"cropped and not resized: {done['cropped only']} of {len(self)} images, a side of them {limit}"
            )
        if done["enlarged"]:
            notes.append(f"enlarged to the crop {crop}: {done['enlarged']} of {len(self)} images, smaller than it")
        return notes

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "preprocess": self._preprocess.describe()}

    def _load(self, chunk: Sequence[int], boxes: Sequence[Box] | None, *, in_order: bool) -> Batch:
        """The readable images of `chunk`, a row each."""
        rows = np.empty((len(chunk), *self._preprocess.shape), dtype=self._preprocess.spec.dtype)
        kept: list[int] = []
        sizes: list[tuple[int, int]] = []
        for place, index in enumerate(chunk):
            image = self._decode(index, in_order)
            if image is not None:
                box = boxes[place] if boxes is not None else None
                geometry = self._preprocess.write(image, rows[len(kept)], box)
                if box is None:
                    self._geometry[index] = 1 + GEOMETRIES.index(geometry)
                kept.append(index)
                sizes.append(image.size)
        indices = np.array(kept, dtype=np.int64)
        labels, truth = (None if known is None else known[indices] for known in (self.labels, self._ids))
        if self._maps is not None and boxes is None:
            truth = np.array([self._label_map(*reported) for reported in zip(kept, sizes, strict=True)], np.uint8)
        return Batch(self._inputs.feed(rows[: len(kept)], sizes), labels, len(kept), indices, truth)

    def _label_map(self, index: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        """The classes of an image's pixels, as its pixels lie in the input: uint8[height, width]."""
        assert self._maps is not None
        found = read_label_map(self._maps[index], size, self._reduce_zero_label, self._max_pixels)
        return np.asarray(self._preprocess.fitted(found, "nearest"))

    def _decode(self, index: int, in_order: bool) -> Image.Image | None:
        try:
            return decoded(self._file(index, in_order), self._max_pixels)
        except Exception as error:  # Pillow's decoders raise whatever the bytes make them raise
            self._corrupt[index] = str(error) or type(error).__name__
        if len(self._corrupt) > MAX_CORRUPT * len(self):
            raise self._too_many(in_order)
        return None

    def _too_many(self, in_order: bool) -> UnsupportedDataError:
        """The error, after a look at the first images, those that nobody has asked for yet, too."""
        for index in range(min(len(self), _LOOKED_AT)):
            if index not in self._corrupt:
                try:
                    decoded(self._file(index, in_order), self._max_pixels)
                except Exception as error:  # as above
                    self._corrupt[index] = str(error) or type(error).__name__
        at_least = "at least " if len(self) > _LOOKED_AT else ""
        return UnsupportedDataError(
            f"{at_least}{len(self._corrupt)} of {len(self)} images cannot be read",
            where=str(self._root),
            expected=f"at most {MAX_CORRUPT:.0%}",
            found=self._first_corrupt(),
            hint="remove or replace these files",
        )

    def _first_corrupt(self) -> str:
        skipped = self.skipped
        more = len(skipped) - _NAMED
        return "; ".join([*skipped[:_NAMED], *([f"and {more} more"] if more > 0 else [])])
