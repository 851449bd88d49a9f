"""Scales of weights: one per output channel of w[out, k], symmetric.

    absmax    scale = max|w| / qmax
    mse       scale = clip / qmax, the clip <= max|w| of least sum((w - q(w))^2) on a grid

Pruned weights are exactly zero in both w and q(w): they add no error, so the sum runs over the non-zero weights only.

Where the best clip c can lie is known beforehand: the largest weight R is off by R - c, and the whole error is at most
that of c = R; so c >= R - sqrt(error(R)). For INT8 that leaves a few percent below R, and a small grid is a fine one.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.quant.formats import IntFormat, clamp_scale

Float32 = NDArray[np.float32]

_CHUNK_ELEMENTS = 1 << 16  # |w| and the temporaries of one chunk stay in a core's L2 cache
_COARSE, _FINE = 16, 4


def weight_scales(w: NDArray[Any], fmt: IntFormat, *, method: Literal["mse", "absmax"] = "mse") -> Float32:
    """Scale of each output channel of w[out, k], float32 [out], > 0; 1 for a channel that is all zero.

    Raises:
        ValueError: not 2-D, NaN or infinity, an unknown method.
    """
    if w.ndim != 2:
        raise ValueError(f"a weight is w[out, k]; found shape {w.shape}")
    if method not in ("mse", "absmax"):
        raise ValueError(f'method must be "mse" or "absmax"; found {method!r}')
    out, k = w.shape
    scales = np.ones(out, np.float32)
    rows = max(1, _CHUNK_ELEMENTS // max(1, k))
    for start in range(0, out, rows):
        part = np.abs(w[start : start + rows].astype(np.float32, order="C"))
        peak = part.max(axis=1, initial=0)
        if not np.isfinite(peak).all():
            raise ValueError(f"weights must be finite; found NaN or infinity in shape {w.shape}")
        clip = _best_clip(part, peak, fmt.qmax) if method == "mse" else peak
        scales[start : start + rows] = np.where(peak > 0, clamp_scale(clip / fmt.qmax), 1)
    return scales


def _best_clip(part: Float32, peak: Float32, qmax: int) -> Float32:
    """The clip of least squared error for each row of part[rows, k] = |w|, whose maxima are `peak`."""
    best, error = peak, _error(part, peak, qmax)
    step = np.minimum(np.sqrt(error), peak) / (_COARSE + 1)
    for count in range(1, _COARSE + 1):
        best, error = _better(part, best, error, peak - count * step, qmax)
    middle = best
    fine = step / (_FINE + 1)
    for count in (*range(-_FINE, 0), *range(1, _FINE + 1)):
        best, error = _better(part, best, error, np.minimum(middle + count * fine, peak), qmax)
    return best


def _better(part: Float32, best: Float32, error: Float32, clip: Float32, qmax: int) -> tuple[Float32, Float32]:
    candidate = _error(part, clip, qmax)
    wins = candidate < error
    return np.where(wins, clip, best), np.where(wins, candidate, error)


def _error(part: Float32, clip: Float32, qmax: int) -> Float32:
    """sum((w - q(w))^2) of each row, for that row's clip."""
    scale = np.where(clip > 0, clip, np.float32(1)) / np.float32(qmax)
    steps = part * (1 / scale)[:, None]
    codes = np.rint(steps)
    np.minimum(codes, np.float32(qmax), out=codes)
    codes -= steps
    squared: Float32 = np.einsum("ok,ok->o", codes, codes) * scale * scale
    return squared
