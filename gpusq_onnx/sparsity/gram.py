"""What second-order methods need to know of a layer's inputs: the sum of X^T X and the mean of X, streamed.

The products of one batch are float32 GEMMs, the sums over batches float64. The matrix is made in fixed tiles, each by
itself, so that the numbers are the same whoever computes the tiles and in whatever order.

Limits: memory of one k x k float64 matrix, 75 MB for k = 3072, however many rows come.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Each = Callable[[Callable[[Any], None], Iterable[Any]], None]
"""Runs a function on every item of independent work; `pipeline.parallel` has one that does so in threads."""

LARGEST = 1e18  # of what is squared: sums of larger squares overflow float32
TILE = 512
_ROUNDING = 2.0**-22  # of a float32 sum of products, in units of the sum
_FEW = 64  # below so many features, the errors of all are not small beside the error of one


def one_by_one(work: Callable[[Any], None], items: Iterable[Any]) -> None:
    """The plain `Each`: in order, in this thread."""
    for item in items:
        work(item)


def spans(length: int, width: int) -> list[slice]:
    """Slices of `width` that cover `length`, the last one shorter."""
    return [slice(start, min(start + width, length)) for start in range(0, length, width)]


class Gram:
    """Sums over the rows of X[rows, k].

    Args:
        k: number of input features.
        each: how the tiles of a batch are worked through.

    Attributes:
        k: number of input features.
        rows: rows seen, by their weights.
        total: their sum, [k].
    """

    def __init__(self, k: int, each: Each = one_by_one) -> None:
        self.k = k
        self.rows = 0.0
        self._each = each
        self._products: NDArray[np.float64] = np.zeros((k, k))  # tiles above the diagonal and on it
        self.total: NDArray[np.float64] = np.zeros(k)

    def add(self, x: NDArray[Any], weights: NDArray[np.float32] | None = None) -> None:
        """Add the rows of x[..., k], any float dtype, each counting as its weight says, [rows] >= 0; None: as 1.

        Raises:
            ValueError: the last dimension is not k, NaN or infinity; the sums stay as they were.
        """
        if x.ndim == 0 or x.shape[-1] != self.k:
            raise ValueError(f"inputs must be x[..., {self.k}]; found shape {x.shape}")
        flat = np.ascontiguousarray(x.reshape(-1, self.k), np.float32)
        if not np.isfinite(flat).all():
            raise ValueError(f"inputs must be finite; found NaN or infinity in shape {x.shape}")

        counted = rooted = flat  # times the weights, and times their roots
        if weights is not None:
            counted, rooted = flat * weights[:, None], flat * np.sqrt(weights)[:, None]

        def add_tile(tile: tuple[slice, slice]) -> None:
            above, right = tile
            # on the diagonal numpy does half the work; an overflow: see `finite`
            with np.errstate(over="ignore", invalid="ignore"):
                self._products[tile] += rooted[:, above].T @ rooted[:, right]

        self._each(add_tile, self._tiles())
        self.total += counted.sum(axis=0, dtype=np.float64)
        self.rows += len(flat) if weights is None else float(weights.sum(dtype=np.float64))

    @property
    def mean(self) -> NDArray[np.float32]:
        """Mean input, float32 [k]; zeros when nothing was added."""
        return (self.total / max(1.0, self.rows)).astype(np.float32)

    @property
    def finite(self) -> bool:
        """Whether no square was too large for float32."""
        return bool(np.isfinite(self._products).all())

    @property
    def rounding(self) -> float:
        """How far float32 products may have moved an eigenvalue of the centred sums; inputs that hardly vary leave
        little else. Errors of single products are a share of s_i s_j / rows, which is a matrix of norm s^T s / rows."""
        return _ROUNDING * max(self.k, _FEW) * float(np.square(self.total).mean()) / max(1.0, self.rows)

    def energies(self, *, centred: bool) -> NDArray[np.float32]:
        """What each input counts for, float32 [k]: its squares' sum, times a power of 2: the largest is about 1.

        Inputs that hardly vary leave sums below zero by rounding; they count for nothing.
        """
        found = np.maximum(np.diag(self.sums(centred=centred)), 0)
        return np.ldexp(found, -math.frexp(float(found.max(initial=0)))[1]).astype(np.float32)

    def sums(self, *, centred: bool) -> NDArray[np.float64]:
        """The sum of X^T X, float64 [k, k]; centred: of the inputs less their mean."""
        found = np.empty_like(self._products)
        mean = self.total / max(1.0, self.rows)
        for above, right in self._tiles():
            tile = self._products[above, right]
            found[above, right] = tile - np.outer(self.total[above], mean[right]) if centred else tile
            found[right, above] = found[above, right].T
        return found

    def _tiles(self) -> Iterator[tuple[slice, slice]]:
        parts = spans(self.k, TILE)
        return ((above, right) for i, above in enumerate(parts) for right in parts[i:])
