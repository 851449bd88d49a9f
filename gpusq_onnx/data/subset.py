"""Some samples of a source, as a source of its own: training wants all images, calibration a hundred."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gpusq_onnx.data.prefetch import ahead
from gpusq_onnx.data.source import Batch, Box, Source
from gpusq_onnx.errors import UsageError


class Subset(Source):
    """The samples `indices` of `source`, which must be readable by index.

    Args:
        what: which they are, for the digest.
    """

    def __init__(self, source: Source, indices: Sequence[int], what: str) -> None:
        self._source, self._indices, self._what = source, indices, what
        self.kind, self.labelled, self.static_batch = source.kind, source.labelled, source.static_batch
        self.croppable = source.croppable
        self.labels = None if source.labels is None else source.labels[np.asarray(indices)]
        self.annotations, self.segmented, self.input_size = source.annotations, source.segmented, source.input_size

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
        return hashlib.sha256(f"{self._what} {self._source.digest()}".encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        return {**self._source.describe(), "samples": len(self)}

    @property
    def skipped(self) -> list[str]:
        return self._source.skipped

    @property
    def notes(self) -> list[str]:
        return self._source.notes


def at_most(source: Source, count: int) -> Source:
    """The source, or `count` samples of it, evenly spread, where it holds more and can be read by index."""
    if not source.random_access or len(source) <= count:
        return source
    return Subset(source, _spread(count, len(source)), f"{count} of {len(source)}")


def split(source: Source, count: int, option: str = "--calibrate") -> tuple[Source, Source]:
    """`at_most(source, count)`, and the samples that it leaves out.

    Args:
        option: where the count was given.

    Raises:
        UsageError: the source cannot be read by index, or nothing would be left.
    """
    if not source.random_access:
        raise UsageError(f"{source.kind} data cannot be divided", where="--data", hint="save it as an .npz first")
    if len(source) <= count:
        raise UsageError(
            f"no samples are left {'to measure on' if option == '--calibrate' else 'to work with'}",
            where=option,
            expected=f"fewer than the {len(source)} samples of the data",
            found=str(count),
        )
    taken = set(_spread(count, len(source)))
    rest = [index for index in range(len(source)) if index not in taken]
    return at_most(source, count), Subset(source, rest, f"all but {count} of {len(source)}")


def held_out(source: Source, count: int) -> tuple[Source, Source]:
    """`count` samples, evenly spread, that `hold_out` keeps from all passes, and the others. Raises as `split`."""
    return split(source, count, "--hold-out")


def halves(source: Source) -> tuple[Source, Source]:
    """Every other sample, and the others; the whole source twice where it cannot be divided."""
    if not source.random_access or len(source) < 2:
        return source, source
    return split(source, len(source) // 2)


def _spread(count: int, total: int) -> list[int]:
    return [index * total // count for index in range(count)]
