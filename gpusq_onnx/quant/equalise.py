"""Per-channel factors that take outlier channels out of a tensor before one scale has to serve all of it.

A Linear reads x[..., k] with w[out, k]. For any positive s[k], (x / s) (w * s)^T = x w^T: dividing the activation and
multiplying the weight's columns changes nothing in floating point and much in INT8. A Linear's output needs no partner:
w's rows are quantised one by one, so they can be divided by any s[out] and the product multiplied back.

    inputs    s_k = peak(x_k)^alpha / peak(w_k)^(1 - alpha)     SmoothQuant (arXiv 2211.10438), equation 4
    outputs   s_n = peak(y_n)
    both scaled to a geometric mean of 1

Limits: peaks of dead channels are floored, so that no factor is zero or infinite.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
_FLOOR = 1e-4  # of the largest peak: below, a channel counts as dead


def peaks(x: NDArray[Any]) -> Float32:
    """Largest |x| of each channel of x[..., channels], float32."""
    flat = x.reshape(-1, x.shape[-1])
    return np.maximum(flat.max(axis=0), -flat.min(axis=0)).astype(np.float32)


def outlier_ratio(peak: Float32) -> float:
    """The largest channel peak over the median one."""
    return float(peak.max() / max(float(np.median(peak)), 1e-30)) if peak.size else 1.0


def input_factors(x_peak: Float32, w_peak: Float32, alpha: float) -> Float32:
    """s[k] from the peaks of the activation's channels and of the weight's columns; 0 <= alpha <= 1."""
    return _normal(_alive(x_peak) ** alpha / _alive(w_peak) ** (1 - alpha))


def output_factors(y_peak: Float32) -> Float32:
    """s[out] from the peaks of the output's channels."""
    return _normal(_alive(y_peak))


def _alive(peak: Float32) -> NDArray[np.float64]:
    top = float(peak.max())
    return np.maximum(peak.astype(np.float64), _FLOOR * top) if top > 0 else np.ones(peak.shape)


def _normal(factors: NDArray[np.float64]) -> Float32:
    return (factors / np.exp(np.log(factors).mean())).astype(np.float32)
