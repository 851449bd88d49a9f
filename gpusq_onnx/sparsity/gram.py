"""What second-order pruning needs to know of a layer's inputs: the sum of X^T X and the mean of X, streamed.

GEMMs and their sum are in float32: beside a damping of 1 % their rounding is out of sight. The mean is in float64.
Limits: memory of one k x k float32 matrix, 38 MB for k = 3072, however many rows come.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_ROUNDING = 1e-5  # of float32 sums of products


class Gram:
    """Sums over the rows of X[rows, k].

    Attributes:
        k: number of input features.
        rows: rows seen.
    """

    def __init__(self, k: int) -> None:
        self.k = k
        self.rows = 0
        self._products: NDArray[np.float32] = np.zeros((k, k), np.float32)
        self._sum: NDArray[np.float64] = np.zeros(k)

    def add(self, x: NDArray[Any]) -> None:
        """Add the rows of x[..., k], any float dtype.

        Raises:
            ValueError: the last dimension is not k, NaN or infinity; the sums stay as they were.
        """
        if x.ndim == 0 or x.shape[-1] != self.k:
            raise ValueError(f"inputs must be x[..., {self.k}]; found shape {x.shape}")
        flat = np.ascontiguousarray(x.reshape(-1, self.k), np.float32)
        if not np.isfinite(flat).all():
            raise ValueError(f"inputs must be finite; found NaN or infinity in shape {x.shape}")
        self._products += flat.T @ flat  # numpy sees the symmetry and does half the work
        self._sum += flat.sum(axis=0, dtype=np.float64)
        self.rows += len(flat)

    @property
    def mean(self) -> NDArray[np.float32]:
        """Mean input, float32 [k]; zeros when nothing was added."""
        return (self._sum / max(1, self.rows)).astype(np.float32)

    @property
    def rounding(self) -> float:
        """How far float32 products may have moved a centred sum: inputs that hardly vary leave little else."""
        return _ROUNDING * float(np.square(self._sum).mean()) / max(1, self.rows)

    def sums(self, *, centred: bool) -> NDArray[np.float64]:
        """The sum of X^T X, float64 [k, k]; centred: of the inputs less their mean."""
        means = np.outer(self._sum, self._sum) / max(1, self.rows) if centred else 0.0
        return self._products.astype(np.float64) - means
