"""Seeded random tensors, for calibration when there is no data and the model's inputs are not images.

    floats      normal noise: embeddings, features
    integers    rows of the table that they choose from (token ids); where they choose from none, 1: a mask that keeps
                everything
    truth       true

A sample is a row of every input; where the inputs have no batch in common, samples are drawn by whole feeds.

Limits: ids drawn evenly are no sentences, and sizes or positions given as integers are no sizes: such a model may not
run, and says so. Real data is an .npz with one array for each input.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.source import (
    Batch,
    Box,
    InputSpec,
    Source,
    WholeFeeds,
    common_batch,
    no_common_batch,
    ready_made,
    require_whole,
    whole_feed,
)
from gpusq_onnx.data.synthetic import DEFAULT_SAMPLES
from gpusq_onnx.errors import UnsupportedDataError


class SyntheticTensors(Source):
    """`options.samples` samples (64 by default); `rows` are those of tables, by input.

    Raises:
        UnsupportedDataError: a dimension besides the batch is not fixed, or a type is none of the above.
    """

    kind = "synthetic"

    def __init__(self, options: DataOptions, inputs: Sequence[InputSpec], rows: Mapping[str, int]) -> None:
        for spec in inputs:
            if spec.dtype.kind not in "fViub" or not all(isinstance(dim, int) for dim in spec.shape[1:]):
                raise UnsupportedDataError(
                    f"there is no data, and none can be made up for the model's input {spec.name!r}",
                    expected="numbers, every dimension but the batch fixed",
                    found=str(spec),
                    hint="give --data FILE.npz with one array per input name, or a Polygraphy script",
                )
        self._inputs, self._rows, self._seed = list(inputs), dict(rows), options.seed
        self._count = options.samples or DEFAULT_SAMPLES
        self._notes = ready_made(options, "synthetic tensors")
        self._apart = no_common_batch(inputs)
        self.random_access = not self._apart
        self.static_batch = None if self._apart else common_batch(inputs)

    def __len__(self) -> int:
        return self._count if self.whole is None else self.whole.count * self._rows_of_a_feed

    @property
    def whole(self) -> WholeFeeds | None:
        return WholeFeeds(-(-self._count // self._rows_of_a_feed), self._apart) if self._apart else None

    @property
    def _rows_of_a_feed(self) -> int:
        return next((spec.static_batch or 1 for spec in self._inputs if spec.shape), 1)

    @property
    def notes(self) -> list[str]:
        made_up = "no data was given: random tensors are used instead, which say little about real ones"
        return [made_up, *self._notes]

    def batches(self, batch: int) -> Iterator[Batch]:
        if self.whole is not None:
            yield from (whole_feed(self._sample(index, whole=True)) for index in range(self.whole.count))
            return
        size = self.static_batch or batch
        for start in range(0, len(self), size):
            yield self.read(range(start, min(start + size, len(self)))).filled(self.static_batch)

    def read(self, indices: Sequence[int], boxes: Sequence[Box] | None = None) -> Batch:
        require_whole("synthetic tensors", boxes)
        if self.whole is not None:
            return super().read(indices)
        drawn = [self._sample(index) for index in indices]
        feed = {spec.name: np.stack([sample[spec.name] for sample in drawn]) for spec in self._inputs}
        return Batch(feed, None, len(indices), np.array(indices, np.int64))

    def digest(self) -> str:
        """Of what determines the tensors."""
        shapes = [str(spec) for spec in self._inputs]
        recipe = json.dumps(["tensors-1", self._seed, self._count, shapes, self._rows], sort_keys=True)
        return hashlib.sha256(recipe.encode()).hexdigest()

    def _sample(self, index: int, whole: bool = False) -> dict[str, NDArray[Any]]:
        """A row of every input, or a whole feed, in which an open axis 0 is 1."""
        rng = np.random.default_rng([self._seed, index])
        return {spec.name: self._drawn(spec, spec.shape if whole else spec.shape[1:], rng) for spec in self._inputs}

    def _drawn(self, spec: InputSpec, dims: Sequence[int | str | None], rng: np.random.Generator) -> NDArray[Any]:
        shape = [dim if isinstance(dim, int) else 1 for dim in dims]
        if spec.dtype.kind in "fV":
            return np.asarray(rng.standard_normal(shape, np.float32)).astype(spec.dtype)
        if spec.name in self._rows:
            return np.asarray(rng.integers(0, self._rows[spec.name], shape)).astype(spec.dtype)
        return np.ones(shape, spec.dtype)
