"""KL divergence of every possible clip of a histogram: the search of TensorRT's entropy calibrator.

For each i from `levels` to the number of bins, with the range clipped after bin i:
    P = counts[:i], all that lies beyond added to its last bin
    Q = counts[:i] in `levels` equal stretches; each non-empty bin gets the mean of the non-empty bins of its stretch
    divergence = sum(p ln(p / q)), p and q normalised; infinite where p > 0 and q = 0

Source: S. Migacz, "8-bit inference with TensorRT" (GTC 2017), in the reading of NVIDIA's own open implementation,
pytorch-quantization's `calib/histogram.py`: stride 1, and bin 0, swollen by exact zeros, takes the count of bin 1.
There a tensor takes seconds; here every candidate is read off prefix sums, in milliseconds.
"""

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


def kl_divergences(counts: Float64, levels: int) -> Float64:
    """Divergence of each clip.

    Args:
        counts: [bins], >= 0, bins >= levels; need not be whole numbers.
        levels: number of codes on one side of zero: 128 for 8 bits.

    Returns:
        float64 [bins - levels + 1]; element j is for the clip after bin levels + j.
    """
    counts = np.concatenate([counts[1:2], counts[1:]])
    total = counts.sum()
    kept = np.arange(levels, len(counts) + 1)
    last = counts[kept - 1]
    sums = _prefix(counts)
    tail = np.maximum(total - sums[kept], 0)

    # sum(P ln P): all bins but the last as they are, the last with the tail added.
    entropy = _prefix(_xlogy(counts, counts))[kept - 1] + _xlogy(last + tail, last + tail)

    # Stretch j of a clip after bin i holds the bins from ceil(j i / levels) to ceil((j + 1) i / levels).
    edges = -(-np.arange(levels + 1) * kept[:, None] // levels)
    mass = np.diff(sums[edges], axis=1)
    filled = np.diff(_prefix(counts > 0)[edges], axis=1)
    mean = np.divide(mass, filled, out=np.zeros_like(mass), where=filled > 0)
    cross = _xlogy(mass, mean).sum(axis=1) + _xlogy(tail, np.where(last > 0, mean[:, -1], 0))

    # With p = P / total and q = Q / sums[kept]:
    with np.errstate(divide="ignore", invalid="ignore"):
        divergence = (entropy - cross) / total - np.log(total) + np.log(sums[kept])
    return np.where(sums[kept] > 0, divergence, np.inf)


def _prefix(x: NDArray[np.generic]) -> Float64:
    return np.concatenate([[0.0], np.cumsum(x, dtype=np.float64)])


def _xlogy(x: Float64, y: Float64) -> Float64:
    """x ln y, with 0 ln 0 = 0."""
    with np.errstate(divide="ignore"):
        return np.multiply(x, np.log(y), out=np.zeros_like(x), where=x > 0)
