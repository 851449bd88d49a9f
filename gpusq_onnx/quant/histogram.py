"""A streaming histogram of |x| whose range grows by doubling, and the exact range of x beside it.

Bin i counts |x| in [i * width, (i+1) * width), width a power of two: the least one for which all that was seen fits.
When a larger value arrives, bins merge in whole powers of two. Dyadic bins nest exactly, so the counts do not depend on
the order of the updates, and one pass is enough. Elements may count by the importance of their channel, so that errors
are weighed by what they do to the layer's output.

The extremes are always exact. Of a large array only every s-th element is counted, s coprime to the array's size and so
to each of its dimensions: all channels and all tokens are seen equally often. Same input, same counts.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

_CHUNK_ELEMENTS = 1 << 17
_NORMAL = 126  # exponents, either way, of which float32 holds the power and its inverse
_PIECE = 1 << 13  # of the sample: larger temporaries are new pages each time, at several times the cost of the counting


class Histogram:
    """Counts of |x|, in O(bins) memory.

    Args:
        bins: a power of two. Between half of them and all of them lie below max|x|.
        per_update: at most about this many elements of one array are counted.

    Attributes:
        counts: float64 [bins]; whole numbers, or sums of importances.
        minimum, maximum: exact extremes of x; +inf, -inf before the first update.
    """

    def __init__(self, bins: int = 8192, per_update: int = 1 << 18) -> None:
        if bins < 2 or bins & (bins - 1):
            raise ValueError(f"bins must be a power of two; found {bins}")
        self.counts: Float64 = np.zeros(bins)
        self.minimum, self.maximum = math.inf, -math.inf
        self._per_update = per_update
        self._exponent = -1022  # of the bins' width: at first, all that a float32 can hold is too large

    @property
    def absmax(self) -> float:
        """Exact max|x|; 0 before the first update."""
        return max(0.0, -self.minimum, self.maximum)

    @property
    def edges(self) -> Float64:
        """The bins' edges, float64 [bins + 1], in the units of x."""
        return np.arange(len(self.counts) + 1, dtype=np.float64) * self.width

    @property
    def width(self) -> float:
        """Width of a bin, a power of two."""
        return 2.0**self._exponent

    def update(self, x: NDArray[Any], importance: Float64 | None = None) -> None:
        """Count an array of any shape and real dtype; an empty one changes nothing.

        Args:
            importance: what an element of each channel counts, [x.shape[-1]]; None counts every element once.

        Raises:
            ValueError: NaN or infinity; the state is as before.
        """
        if x.size == 0:
            return
        flat = x.reshape(-1)
        low, high = extremes(flat)
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        self._grow(self.absmax)
        stride = _stride(flat.size, self._per_update)
        sample = flat[::stride]
        weights, channels = None, x.shape[-1] if x.ndim else 1
        if importance is not None:  # the sampled channels come round again after as many samples as there are channels
            weights = np.resize(importance[np.arange(channels) * stride % channels], channels + _PIECE)
        for start in range(0, sample.size, _PIECE):
            part = sample[start : start + _PIECE]
            codes = _in_widths(np.abs(part.astype(np.promote_types(part.dtype, np.float32))), self._exponent)
            share = None if weights is None else weights[start % channels :][: part.size]
            self.counts += np.bincount(codes.astype(np.intp), share, minlength=len(self.counts))

    def _grow(self, value: float) -> None:
        """Widen the bins until `value` lies below the last edge."""
        bins = len(self.counts)
        needed = math.frexp(value)[1] - (bins.bit_length() - 1)  # value < 2**frexp exponent
        if value > 0 and needed > self._exponent:
            merged = np.arange(bins) >> min(needed - self._exponent, 62)
            self.counts = np.bincount(merged, weights=self.counts, minlength=bins).astype(np.float64, copy=False)
            self._exponent = needed


def _in_widths(x: NDArray[Any], exponent: int) -> NDArray[Any]:
    """x / 2**exponent, exactly; x may be overwritten."""
    if abs(exponent) > _NORMAL:
        scaled: NDArray[Any] = np.ldexp(x, -exponent)
        return scaled
    x *= 2.0**-exponent  # 13 times as fast
    return x


def extremes(flat: NDArray[Any]) -> tuple[float, float]:
    """Exact minimum and maximum of a non-empty 1-D array, in one pass over memory.

    Raises:
        ValueError: NaN or infinity.
    """
    low, high = math.inf, -math.inf
    for start in range(0, flat.size, _CHUNK_ELEMENTS):
        part = flat[start : start + _CHUNK_ELEMENTS]
        part = part.astype(np.promote_types(part.dtype, np.float32), copy=False)
        low, high = min(float(part.min()), low), max(float(part.max()), high)
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"activations must be finite; found NaN or infinity in {flat.size} elements")
    return low, high


def _stride(size: int, limit: int) -> int:
    stride = -(-size // limit)
    while math.gcd(stride, size) != 1:
        stride += 1
    return stride
