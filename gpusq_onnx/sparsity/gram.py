"""What second-order pruning needs to know of a layer's inputs: sums over rows, streamed, in O(k^2) memory.

    Gram         sum X^T X and mean X
    CrossGram    sum X_s^T X_d and both means, over the same rows as two models see them

GEMMs and sums of products are in float32: with damping of 1 % their rounding is out of sight. Means are in float64.
Limits: one k x k float32 matrix each, 38 MB for k = 3072.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


class CrossGram:
    """Sums over rows seen by two models: s, the one being pruned, and d, the dense one.

    Attributes:
        k: number of input features.
        rows: rows seen.
        matrix: float32 [k, k], the sum of X_s^T X_d.
    """

    def __init__(self, k: int) -> None:
        self.k = k
        self.rows = 0
        self.matrix: Float32 = np.zeros((k, k), np.float32)
        self._sum_s: Float64 = np.zeros(k)
        self._sum_d: Float64 = np.zeros(k)

    def add(self, x_s: NDArray[Any], x_d: NDArray[Any]) -> None:
        """Add the rows of x_s[..., k] and x_d[..., k], any float dtype, in the same order.

        Raises:
            ValueError: shapes that differ or do not end in k, NaN or infinity; the sums stay as they were.
        """
        if x_s.shape != x_d.shape:
            raise ValueError(f"inputs of both models must have one shape; found {x_s.shape} and {x_d.shape}")
        s = _rows(x_s, self.k)
        d = s if x_d is x_s else _rows(x_d, self.k)
        self.matrix += s.T @ d  # numpy sees s.T @ s and does half the work
        self._sum_s += s.sum(axis=0, dtype=np.float64)
        self._sum_d += d.sum(axis=0, dtype=np.float64)
        self.rows += len(s)

    @property
    def mean_s(self) -> Float32:
        """Mean input of the model being pruned, float32 [k]; zeros when nothing was added."""
        return (self._sum_s / max(1, self.rows)).astype(np.float32)

    @property
    def mean_d(self) -> Float32:
        """Mean input of the dense model, float32 [k]; zeros when nothing was added."""
        return (self._sum_d / max(1, self.rows)).astype(np.float32)

    def sums(self, *, centred: bool) -> Float64:
        """The sum of X_s^T X_d, float64 [k, k]; centred: of the inputs less their means."""
        means = np.outer(self._sum_s, self._sum_d) / max(1, self.rows) if centred else 0.0
        return self.matrix.astype(np.float64) - means


class Gram:
    """Sums over the rows of X[rows, k]. Attributes as `CrossGram`, with X for both."""

    def __init__(self, k: int) -> None:
        self._cross = CrossGram(k)

    def add(self, x: NDArray[Any]) -> None:
        """Add the rows of x[..., k], any float dtype.

        Raises:
            ValueError: the last dimension is not k, NaN or infinity; the sums stay as they were.
        """
        self._cross.add(x, x)

    @property
    def k(self) -> int:
        """Number of input features."""
        return self._cross.k

    @property
    def rows(self) -> int:
        """Rows seen."""
        return self._cross.rows

    @property
    def mean(self) -> Float32:
        """Mean input, float32 [k]; zeros when nothing was added."""
        return self._cross.mean_s

    def sums(self, *, centred: bool) -> Float64:
        """The sum of X^T X, float64 [k, k]; centred: of the inputs less their mean."""
        return self._cross.sums(centred=centred)


def _rows(x: NDArray[Any], k: int) -> Float32:
    if x.ndim == 0 or x.shape[-1] != k:
        raise ValueError(f"inputs must be x[..., {k}]; found shape {x.shape}")
    flat = np.ascontiguousarray(x.reshape(-1, k), np.float32)
    if not np.isfinite(flat).all():
        raise ValueError(f"inputs must be finite; found NaN or infinity in shape {x.shape}")
    return flat
