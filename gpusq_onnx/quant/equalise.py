"""What is moved out of an activation before one scale has to serve all of it: outlier channels, and its middle.

A Linear reads x[..., k] with w[out, k]. For any positive s[k], (x / s) (w * s)^T = x w^T: dividing the activation and
multiplying the weight's columns changes nothing in floating point and much in INT8. A Linear's output needs no partner:
w's rows are quantised one by one, so they can be divided by any s[out] and the product multiplied back.

    inputs    s_k = peak(x_k)^a / peak(w_k)^(1 - a)     SmoothQuant (arXiv 2211.10438), equation 4
    outputs   s_n = peak(y_n)
    both scaled to a geometric mean of 1

    middle    (x - c) w^T + c sum_k w_k = x w^T: what a GELU makes is all on one side of zero, and a grid around zero
              spends half of its levels on what never comes, of 4 bits more than can be spared (after Outlier
              Suppression+, arXiv 2304.09145; there, a number a channel)

SmoothQuant leaves a to the user; here it is the one of least expected output error under uniform rounding noise,

    E(s) = dx^2 sum_k s_k^2 |w_k|^2  +  sum_n dw_n^2 sum_k E[x_k^2] / s_k^2,
    dx = max_k peak(x_k) / s_k,  dw_n = max_k |w_nk| s_k      (both over 127, which cancels)

Limits: peaks of dead channels are floored, so that no factor is zero or infinite; clipping is not modelled; weights
count as if they had as many levels as their input. Where they have fewer (W4A8), factors that pay in this sum do harm,
also in one that counts the levels: only outliers are worth moving there (docs/benchmarks.md, "Four bits, and FP8").
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
_EXPONENTS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_ROWS = 512  # of the weight, at least: the expected error is a sum over rows, a part tells which factors are best
_ONE_SIDED = 1.5  # times the range around its middle that a tensor reaches from zero
_TAIL = 0.01  # of the values on either side that say nothing of a tensor's range
_VALUES = 1 << 20  # of a tensor, about: enough for its quantiles
_FLOOR = 1e-4  # of the largest peak: below, a channel counts as dead


def peaks(x: NDArray[Any]) -> Float32:
    """Largest |x| of each channel of x[..., channels], float32."""
    flat = x.reshape(-1, x.shape[-1])
    found: Float32 = np.maximum(flat.max(axis=0), -flat.min(axis=0)).astype(np.float32)
    return found


def outlier_ratio(peak: Float32) -> float:
    """The largest channel peak over the median one."""
    return float(peak.max() / max(float(np.median(peak)), 1e-30)) if peak.size else 1.0


def input_factors(x_peak: Float32, x_power: Float64, w: NDArray[Any]) -> tuple[Float32, float]:
    """The best factors s[k] for one activation and the weights that read it.

    Args:
        x_peak: largest |x| of each channel, [k].
        x_power: mean x^2 of each channel, [k].
        w: [out, k]; the rows of all readers.

    Returns:
        s[k], and how many times smaller the expected squared output error is than with no factors at all.
    """
    rows = np.abs(w[:: max(1, len(w) // _ROWS)].astype(np.float32))
    power = np.square(rows).sum(axis=0, dtype=np.float64)
    plain = _expected_error(np.ones(len(x_peak), np.float32), x_peak, x_power, rows, power)
    w_peak = _alive(rows.max(axis=0))
    candidates = [_normal(_alive(x_peak) ** a / w_peak ** (1 - a)) for a in _EXPONENTS]
    errors = [_expected_error(s, x_peak, x_power, rows, power) for s in candidates]
    best = int(np.argmin(errors))
    return candidates[best], plain / errors[best] if errors[best] > 0 else 1.0


def _expected_error(s: Float32, x_peak: Float32, x_power: Float64, rows: Float32, power: Float64) -> float:
    dx = float((x_peak / s).max())
    dw = (rows * s).max(axis=1).astype(np.float64)
    return float(dx**2 * (power * s**2).sum() + np.square(dw).sum() * (x_power / np.square(s)).sum())


def output_factors(y_peak: Float32) -> Float32:
    """s[out] from the peaks of the output's channels."""
    return _normal(_alive(y_peak))


def middle(x: NDArray[Any]) -> float:
    """The middle of the range of x (any shape), hundredths at both ends left out; 0.0 where x is not one-sided."""
    flat = x.reshape(-1)
    low, high = np.quantile(flat[:: flat.size // _VALUES | 1], (_TAIL, 1 - _TAIL)) if flat.size else (0.0, 0.0)
    reach, half = max(-low, high), (high - low) / 2
    return float(low + high) / 2 if reach >= _ONE_SIDED * half > 0 else 0.0


def _alive(peak: Float32) -> NDArray[np.float64]:
    top = float(peak.max())
    return np.maximum(peak.astype(np.float64), _FLOOR * top) if top > 0 else np.ones(peak.shape)


def _normal(factors: NDArray[np.float64]) -> Float32:
    centred: Float32 = (factors / np.exp(np.log(factors).mean())).astype(np.float32)
    return centred
