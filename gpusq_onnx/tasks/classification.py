"""Image classification: top-1 and top-5 accuracy, and how far two models agree, batch by batch.

A row is right at k when its label is among the k largest logits; equal logits rank by index, as argmax does. A row
with a NaN is never right and agrees with nothing: silence about a broken model would be the worst answer.
Accuracies are fractions, 0..1, as in `runtime.compare.outputs`. Memory does not grow with the number of rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.errors import UnsupportedDataError, UnsupportedModelError
from gpusq_onnx.tasks.kinds import normalised


class Classification:
    """Streaming top-1 and top-5 accuracy of one model."""

    def __init__(self) -> None:
        self._rows = 0
        self._right = {1: 0, 5: 0}

    def update(self, logits: NDArray[Any], labels: NDArray[np.int64]) -> None:
        """Count logits[B, classes] against labels[B].

        Raises UnsupportedModelError when logits are not [B, classes], UnsupportedDataError when a label is not below
        the number of classes.
        """
        ranks = label_ranks(logits, labels)
        self._rows += len(ranks)
        for k in self._right:
            self._right[k] += int((ranks < k).sum())

    def result(self) -> dict[str, float | int]:
        """{"top1": fraction, "top5": fraction, "n": rows}; needs one row at least."""
        if not self._rows:
            raise ValueError("no rows were counted")
        accuracy = {f"top{k}": right / self._rows for k, right in self._right.items()}
        return {**accuracy, "n": self._rows}


def label_ranks(logits: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many logits of each row come before the label's: 0 is top-1. int64[B]; a row with NaN ranks last."""
    if logits.ndim != 2 or len(logits) != len(labels):
        raise UnsupportedModelError(
            "the output is not one row of class logits per image",
            expected=f"[{len(labels)}, classes]",
            found=str(list(logits.shape)),
        )
    classes = logits.shape[1]
    outside = labels[(labels < 0) | (labels >= classes)]
    if len(outside):
        raise UnsupportedDataError(
            f"label {int(outside[0])} is no class of the model",
            expected=f"0 to {classes - 1}",
            found=f"{len(outside)} such labels in this batch",
            hint="is this the classes file that the model was trained with?",
        )
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    earlier = np.arange(classes) < labels[:, None]
    ranks: NDArray[np.int64] = ((logits > own) | ((logits == own) & earlier)).sum(axis=1, dtype=np.int64)
    ranks[np.isnan(logits).any(axis=1)] = classes
    return ranks


def agreement(reference: NDArray[Any], candidate: NDArray[Any]) -> int:
    """Number of rows (or pixels) of two logits[B, classes, ...] whose largest entries are at the same index."""
    same = reference.argmax(axis=1) == candidate.argmax(axis=1)
    whole = ~(np.isnan(reference).any(axis=1) | np.isnan(candidate).any(axis=1))
    return int((same & whole).sum())


def confidence(logits: NDArray[Any]) -> NDArray[np.float64]:
    """float64[B, ...]: the likelihood of the best class; logits[B, classes, ...], or the likelihoods themselves."""
    x = logits.astype(np.float64)
    best = x.max(axis=1, keepdims=True)
    if normalised(np.moveaxis(x, 1, -1)):
        likelihood: NDArray[np.float64] = best[:, 0]
        return likelihood
    certainty: NDArray[np.float64] = 1.0 / np.exp(x - best).sum(axis=1)
    return certainty


def cosine(reference: NDArray[Any], candidate: NDArray[Any]) -> NDArray[np.float64]:
    """float64[B]: cosine between the rows of two [B, ...] arrays, each row flattened.

    Two zero rows are alike (1); a zero row and another have nothing in common (0).
    """
    a = reference.reshape(len(reference), -1).astype(np.float64)
    b = candidate.reshape(len(candidate), -1).astype(np.float64)
    norms = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    product = norms[0] * norms[1]
    dot = (a * b).sum(axis=1)
    both_zero = (norms[0] == 0) & (norms[1] == 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio: NDArray[np.float64] = np.where(product == 0, both_zero.astype(np.float64), dot / product)
    return ratio
