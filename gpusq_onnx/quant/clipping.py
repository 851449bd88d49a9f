"""Scales of weights w[out, k], symmetric: one an output channel, or one for each block of elements along k.

    absmax    scale = max|w| / largest
    mse       scale = clip / largest, the clip <= max|w| of least sum(m (w - q(w))^2) on a grid of clips

m is 1, or each input's mean square where that is known: what a squared error there does to the output.

Pruned weights are exactly zero in both w and q(w): they add no error, so the sum runs over the non-zero weights only.

Where the best clip c can lie is known beforehand: the largest weight R is off by R - c, and the whole error is at most
that of c = R; so c >= R - sqrt(error(R) / m(R)). For INT8 that leaves a few percent below R, and a small grid is a fine
one; for 4 bits it leaves half of the range. On a float grid a clip beyond R can be best: FP4's values are twice as
close below 4 as above it ("Four Over Six").
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.quant.formats import Format, clamp_scale
from gpusq_onnx.sums import Float64, row_dots

Float32 = NDArray[np.float32]

_CHUNK_ELEMENTS = 1 << 19  # larger gains nothing; in smaller ones, threads wait for each other's interpreter lock
_COARSE = 12  # steps between the bound and the peak; then quarter steps on both sides of the best
_COARSE_OFFSETS = tuple(-float(i) for i in range(1, _COARSE + 1))
_WIDER = (1.125, 1.25, 1.375, 1.5, 1.75)  # a float grid's values below its largest one are closer together
_FINE_OFFSETS = (-0.75, -0.5, -0.25, 0.25, 0.5, 0.75)


def weight_scales(
    w: NDArray[Any],
    fmt: Format,
    *,
    method: Literal["mse", "absmax"] = "mse",
    block: int = 0,
    importance: NDArray[np.floating[Any]] | None = None,
) -> Float32:
    """Scales of w[out, k], float32, > 0: [out], or with a `block` [out, k / block]; 1 where all is zero.

    Args:
        importance: m[k] >= 0, for method mse; None: 1.

    Raises:
        ValueError: not 2-D, NaN or infinity, an unknown method, blocks that do not divide k.
    """
    if w.ndim != 2:
        raise ValueError(f"a weight is w[out, k]; found shape {w.shape}")
    if method not in ("mse", "absmax"):
        raise ValueError(f'method must be "mse" or "absmax"; found {method!r}')
    if block:
        if w.shape[1] % block:
            raise ValueError(f"blocks of {block} do not divide k of {w.shape}")
        in_blocks = np.ascontiguousarray(w).reshape(-1, block)
        of_blocks = None if importance is None else np.tile(importance.reshape(-1, block), (len(w), 1))
        return _scales(in_blocks, fmt, method, of_blocks).reshape(len(w), -1)
    return _scales(w, fmt, method, None if importance is None else np.broadcast_to(importance, w.shape))


def _scales(w: NDArray[Any], fmt: Format, method: str, importance: NDArray[np.floating[Any]] | None) -> Float32:
    """One scale a row of w[out, k], with importance[out, k]."""
    out, k = w.shape
    scales = np.ones(out, np.float32)
    rows = max(1, _CHUNK_ELEMENTS // max(1, k))
    for start in range(0, out, rows):
        part = np.abs(w[start : start + rows].astype(np.float32, order="C"))
        peak = part.max(axis=1, initial=0)
        if not np.isfinite(peak).all():
            raise ValueError(f"weights must be finite; found NaN or infinity in shape {w.shape}")
        clip = peak
        if method == "mse":
            part /= np.where(peak > 0, peak, np.float32(1))[:, None]
            clip = peak * _best_clip(part, fmt, None if importance is None else importance[start : start + rows])
        scales[start : start + rows] = np.where(peak > 0, clamp_scale(clip / fmt.largest), np.float32(1))
    return scales


def _best_clip(part: Float32, fmt: Format, importance: NDArray[np.floating[Any]] | None) -> Float32:
    """The clip of least squared error for each row of part[rows, k] = |w| / max|w|: in (0, 1], or wider for floats."""
    error = _Error(part, fmt, importance)
    best = np.ones(len(part), np.float32)
    least = error(best)
    # The largest element is 1 and is off by 1 - clip, so no clip below 1 - sqrt(least / its importance) can win.
    step = np.minimum(np.sqrt(np.divide(least, error.of_peaks(), out=np.ones_like(least), where=least > 0)), 1)
    step /= _COARSE + 1
    for offsets in (_COARSE_OFFSETS, _FINE_OFFSETS):
        centre = best
        for offset in offsets:
            clip = np.minimum(centre + offset * step, 1).astype(np.float32)
            found = error(clip)
            best, least = np.where(found < least, clip, best), np.minimum(found, least)
    for wider in _WIDER if fmt.grid else ():
        clip = np.full(len(part), wider, np.float32)
        found = error(clip)
        best, least = np.where(found < least, clip, best), np.minimum(found, least)
    return best


class _Error:
    """sum(m (w - q(w))^2) of each row of part[rows, k], as a function of the rows' clips."""

    def __init__(self, part: Float32, fmt: Format, importance: NDArray[np.floating[Any]] | None) -> None:
        self.part, self.fmt = part, fmt
        self._importance = None if importance is None else importance.astype(np.float32)
        self._top = np.full_like(part, fmt.largest)  # numpy's minimum of two arrays is 5x as fast as that with a scalar
        self._steps, self._codes = np.empty_like(part), np.empty_like(part)

    def __call__(self, clip: Float32) -> Float64:
        scale = clip / np.float32(self.fmt.largest)
        np.multiply(self.part, (1 / scale)[:, None], out=self._steps)
        if self.fmt.grid:
            self._codes[:] = self.fmt.round_steps(self._steps.copy())
        else:
            np.rint(self._steps, out=self._codes)
            np.minimum(self._codes, self._top, out=self._codes)
        self._codes -= self._steps
        weighted = self._codes
        if self._importance is not None:
            weighted = np.multiply(self._codes, self._importance, out=self._steps)
        return row_dots(self._codes, weighted) * np.square(scale.astype(np.float64))

    def of_peaks(self) -> Float64:
        """The importance of each row's largest element, as far as it is known to be above zero."""
        if self._importance is None:
            return np.ones(len(self.part))
        rows = np.arange(len(self.part))
        found: NDArray[np.float32] = self._importance[rows, self.part.argmax(axis=1)]
        return np.fmax(found, np.finfo(np.float32).tiny).astype(np.float64)
