"""Inner tensors of two models side by side: how far apart each one is, and the first that is too far.

    distance      |a - b| / |a|, Frobenius norms over all samples: 0 is equal, 1 is as wrong as zeros
    up to scale   the same after the candidate's channels were each multiplied by the positive factor that fits best

Equalising divides channels of an inner tensor and multiplies the weights after it: different values on purpose, and
the same function. So inner tensors are judged up to scale; block outputs, which nothing rescales, are not. A channel is
an index along all axes but the first and the last but one ([N, T, C]: C; [N, heads, T, d]: heads and d).

Limits: a factor is fitted only where at least 8 values share it, so small data is judged as it is. A tensor that
differs in scale by mistake shows in the tensors after it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_VALUES_A_FACTOR = 8


@dataclass(frozen=True)
class Tap:
    """A tensor to look at; `strict`: its scale counts, as nothing may rescale it."""

    name: str
    strict: bool = False


@dataclass(frozen=True)
class TapDifference:
    """How one inner tensor of the candidate differs from the reference's. None where nothing finite could be compared.

    Attributes:
        name: of the tensor.
        relative: the distance.
        up_to_scale: the distance up to scale; None for a strict tap, or where too few values share a factor.
        nonfinite: elements of the candidate that are NaN or infinite where the reference is finite.
        shape_mismatches: batches whose shapes differ and so were not compared.
    """

    name: str
    relative: float | None
    up_to_scale: float | None
    nonfinite: int
    shape_mismatches: int

    def leaves(self, tolerance: float) -> bool:
        """Whether the tensor is further away than `tolerance`, or could not be compared."""
        judged = self.relative if self.up_to_scale is None else self.up_to_scale
        return bool(self.nonfinite or self.shape_mismatches) or judged is None or judged > tolerance


def first_departure(taps: Iterable[TapDifference], tolerance: float) -> TapDifference | None:
    """The first of the taps, in their order, that leaves the tolerance; None where all stay."""
    return next((tap for tap in taps if tap.leaves(tolerance)), None)


class RunningTap:
    """Collects a `TapDifference` over batches. Sums are float64, one triple a channel."""

    def __init__(self, tap: Tap) -> None:
        self._tap = tap
        self._sums: NDArray[np.float64] | None = None  # [3, channels]: of a², ab, b²
        self._error, self._size = 0.0, 0.0
        self._values, self._nonfinite, self._mismatches = 0, 0, 0

    def update(self, reference: NDArray[Any], candidate: NDArray[Any]) -> None:
        """Take in one batch, samples along axis 0; any floating type."""
        if reference.shape != candidate.shape:
            self._mismatches += 1
            return
        a, b = (np.atleast_1d(x).astype(np.float64) for x in (reference, candidate))
        finite = np.isfinite(a)
        self._nonfinite += int(np.count_nonzero(finite & ~np.isfinite(b)))
        finite &= np.isfinite(b)
        a[~finite] = b[~finite] = 0.0
        self._error += float(np.square(a - b).sum())
        self._size += float(np.square(a).sum())
        self._values += int(np.count_nonzero(finite))
        if not self._tap.strict:
            self._add_channels(a, b)

    def result(self) -> TapDifference:
        """The differences over all batches so far."""
        relative = _ratio(self._error, self._size) if self._values else None
        return TapDifference(self._tap.name, relative, self._up_to_scale(), self._nonfinite, self._mismatches)

    def _add_channels(self, a: NDArray[np.float64], b: NDArray[np.float64]) -> None:
        axes = (0,) if a.ndim < 3 else (0, a.ndim - 2)
        sums = np.stack([(x * y).sum(axis=axes).ravel() for x, y in ((a, a), (a, b), (b, b))])
        if self._sums is None:
            self._sums = sums
        elif self._sums.shape == sums.shape:
            self._sums += sums
        else:  # the number of channels follows the data: no fixed factors
            self._sums = np.empty((3, 0))

    def _up_to_scale(self) -> float | None:
        if self._sums is None or self._values < _VALUES_A_FACTOR * max(1, self._sums.shape[1]):
            return None
        if not self._sums.shape[1]:
            return None
        aa, ab, bb = self._sums
        explained = np.divide(np.square(ab), bb, out=np.zeros_like(ab), where=ab > 0)
        left = np.where(aa > 0, np.maximum(aa - explained, 0.0), bb)  # no factor makes something of nothing
        return _ratio(float(left.sum()), float(aa.sum()))


def _ratio(error: float, size: float) -> float | None:
    """Root of error over size; 0 of nothing but zeros on both sides, None of something against zeros."""
    if size:
        return float(np.sqrt(error / size))
    return None if error else 0.0
