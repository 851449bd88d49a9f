"""How far a model's outputs are from the dense model's, as one number, without labels.

    classes     KL(softmax(dense) || softmax(other)), summed over classes, mean over images, queries or pixels, for
                outputs that `tasks.kinds` calls logits, queries or pixels; rows that sum to 1 are probabilities already
    one sigmoid a class (detectors)    the KL of each class's yes or no, summed over classes
    scores [B, N] beside boxes [B, N, 4], and no class logits (a detector with its selection in the graph)
                the scores in order of size: sum (dense - other)^2 / sum dense^2; which box comes where is a choice that
                the last bit changes
    none of these                      the same sum over all float outputs

Sums are float64. Elements that are not finite make the number infinite. Limits: boxes are not compared; queries that
change places after a selection before a decoder count as a difference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.tasks.kinds import CLASSES, Shape, normalised, output_kinds, per_class

Outputs = Mapping[str, NDArray[Any]]
Float64 = NDArray[np.float64]

_TINY = 1e-12  # of a probability whose logarithm is taken


class Divergence:
    """Collects the number over batches.

    Args:
        image: shape of the image input, for `tasks.kinds`; empty where there is none.
    """

    def __init__(self, image: Shape = ()) -> None:
        self._image = image
        self._axes: dict[str, int] | None = None
        self._sigmoids = False
        self._scores: list[str] = []
        self._sum = self._weight = 0.0

    @property
    def measure(self) -> str:
        """What the number is, in words."""
        if self._scores:
            return f"squared difference of the sorted scores over their squares ({', '.join(self._scores)})"
        if not self._axes:
            return "squared difference of the outputs over their squares"
        names = ", ".join(self._axes)
        kind = "yes or no of each class" if self._sigmoids else "classes"
        return f"KL of the {kind} to the dense model ({names})"

    def update(self, dense: Outputs, other: Outputs) -> None:
        """Take in one batch of both models' outputs, samples along axis 0."""
        floats = [name for name, x in dense.items() if x.dtype.kind == "f"]
        if self._axes is None:
            kinds = output_kinds({name: dense[name].shape for name in floats}, self._image)
            self._axes = {name: -1 if kind == "queries" else 1 for name, kind in kinds.items() if kind in CLASSES}
            self._sigmoids = any(kinds[name] == "queries" and per_class(dense[name]) for name in self._axes)
            if not self._axes and "boxes" in kinds.values():
                self._scores = [name for name in floats if dense[name].ndim == 2]
        for name in self._axes or self._scores or floats:
            a, b = (side[name].astype(np.float64) for side in (dense, other))
            if self._scores:
                a, b = np.sort(a, axis=-1), np.sort(b, axis=-1)
            if a.shape != b.shape or not np.isfinite(b).all():
                self._sum = math.inf
            elif self._axes:
                self._divergence(np.moveaxis(a, self._axes[name], -1), np.moveaxis(b, self._axes[name], -1))
            else:
                self._sum += float(np.square(a - b).sum())
                self._weight += float(np.square(a).sum())

    def result(self) -> float:
        """The mean over all batches; 0 where nothing was seen."""
        return self._sum / max(self._weight, _TINY)

    def _divergence(self, a: Float64, b: Float64) -> None:
        if self._sigmoids:
            sides = [np.stack([x, np.zeros_like(x)], axis=-1) for x in (a, b)]
            a, b = sides
        first, second = _log_probabilities(a), _log_probabilities(b)
        self._sum += float((np.exp(first) * (first - second)).sum())
        rows = a.shape[:-2] if self._sigmoids else a.shape[:-1]
        self._weight += math.prod(rows)


def _log_probabilities(x: Float64) -> Float64:
    """Log-softmax over the last axis; of rows that are probabilities already, their logarithm."""
    if normalised(x):
        return np.log(np.maximum(x, _TINY))
    x = x - x.max(axis=-1, keepdims=True)
    logs: Float64 = x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return logs
