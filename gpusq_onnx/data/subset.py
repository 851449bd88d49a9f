"""Some samples of a source, as a source of its own: training wants all images, calibration a thousand."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from gpusq_onnx.data.prefetch import ahead
from gpusq_onnx.data.source import Batch, Box, Source


class Subset(Source):
    """`count` samples of `source`, spread evenly over its order; the source must be readable by index."""

    def __init__(self, source: Source, count: int) -> None:
        self._source = source
        self._indices = [index * len(source) // count for index in range(count)]
        self.kind, self.labelled, self.static_batch = source.kind, source.labelled, source.static_batch
        self.croppable = source.croppable

    def __len__(self) -> int:
        return len(self._indices)

    def batches(self, batch: int) -> Iterator[Batch]:
        size = self.static_batch or batch
        chunks = [range(start, min(start + size, len(self))) for start in range(0, len(self), size)]
        for made in ahead(self.read, chunks):
            if made.size:
                yield made.filled(self.static_batch)

    def read(self, indices: Sequence[int], boxes: Sequence[Box] | None = None) -> Batch:
        made = self._source.read([self._indices[index] for index in indices], boxes)
        assert made.indices is not None
        place = {whole: index for index, whole in enumerate(self._indices)}
        own = np.array([place[int(whole)] for whole in made.indices], dtype=np.int64)
        return replace(made, indices=own)

    def digest(self) -> str:
        return hashlib.sha256(f"{len(self)} of {len(self._source)} {self._source.digest()}".encode()).hexdigest()

    @property
    def skipped(self) -> list[str]:
        return self._source.skipped

    @property
    def notes(self) -> list[str]:
        return self._source.notes


def at_most(source: Source, count: int) -> Source:
    """The source, or `count` samples of it where it holds more and can be read by index."""
    return Subset(source, count) if source.random_access and len(source) > count else source
