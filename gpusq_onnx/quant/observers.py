"""Observers: watch an activation batch by batch, then say which symmetric scale it should have.

    minmax        clip = max|x|
    percentile    clip = the least value that a given share of |x| does not exceed (99.99 %)
    mse           clip of least expected (x - q(x))^2
    entropy       clip of least KL divergence of the quantised histogram from the clipped one (TensorRT's calibrator)

    scale = clip / largest

All state is one `Histogram`: memory does not depend on how much was seen, nor the result on the order. Negative values
count by their magnitude; the extra code -128 is not exploited.
"""

from abc import ABC, abstractmethod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.quant.entropy import kl_divergences
from gpusq_onnx.quant.formats import Format, clamp_scale
from gpusq_onnx.quant.histogram import Histogram, extremes

Float64 = NDArray[np.float64]
Kind = Literal["minmax", "percentile", "mse", "entropy"]

_ENTROPY_BINS = 2048  # as TensorRT's calibrator


class Observer(ABC):
    """Streaming statistics of one activation tensor."""

    @abstractmethod
    def update(self, x: NDArray[Any]) -> None:
        """Take in an array of any shape and real dtype. Raises ValueError on NaN or infinity."""

    @abstractmethod
    def _clip(self, fmt: Format) -> float:
        """The magnitude that maps to the largest code; 0 when only zeros were seen."""

    @abstractmethod
    def _seen(self) -> bool: ...

    def scale(self, fmt: Format) -> float:
        """Scale in the units of x, > 0; 1 when only zeros were seen.

        Raises:
            ValueError: nothing was observed.
        """
        if not self._seen():
            raise ValueError("no scale: the observer has seen no value")
        clip = self._clip(fmt)
        return float(clamp_scale(clip / fmt.largest)) if clip > 0 else 1.0


class MinMax(Observer):
    """Largest magnitude seen."""

    def __init__(self) -> None:
        self.minimum, self.maximum = np.inf, -np.inf

    def update(self, x: NDArray[Any]) -> None:
        if x.size:
            low, high = extremes(x.reshape(-1))
            self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)

    def _seen(self) -> bool:
        return self.minimum <= self.maximum

    def _clip(self, fmt: Format) -> float:
        return max(-self.minimum, self.maximum)


class _Histogrammed(Observer):
    def __init__(self, importance: Float64 | None = None) -> None:
        self.histogram = Histogram()
        self._importance = importance

    def update(self, x: NDArray[Any]) -> None:
        self.histogram.update(x, self._importance)

    def _seen(self) -> bool:
        return bool(self.histogram.counts.any())


class Percentile(_Histogrammed):
    """A percentile of |x|, interpolated within its bin."""

    def __init__(self, percentile: float = 99.99) -> None:
        if not 0 < percentile <= 100:
            raise ValueError(f"percentile must be in (0, 100]; found {percentile}")
        super().__init__()
        self.percentile = percentile

    def _clip(self, fmt: Format) -> float:
        seen = self.histogram
        below = np.concatenate([[0], np.cumsum(seen.counts)])
        return min(float(np.interp(self.percentile / 100 * below[-1], below, seen.edges)), seen.absmax)


class MSE(_Histogrammed):
    """Least mean squared quantisation error, x taken as uniform within each bin."""

    def _clip(self, fmt: Format) -> float:
        absmax = self.histogram.absmax
        if absmax == 0:
            return 0.0
        best = self._best(absmax * np.geomspace(2.0**-10, 1, 51), fmt)
        return self._best(np.minimum(best * np.geomspace(2.0**-0.2, 2.0**0.2, 17), absmax), fmt)

    def _best(self, clips: Float64, fmt: Format) -> float:
        used = int(self.histogram.absmax / self.histogram.width) + 1
        edges, counts = self.histogram.edges[: used + 1], self.histogram.counts[:used]
        error = _error_of_floats if fmt.grid else _error_of_integers
        return float(clips[np.argmin([error(edges, counts, clip / fmt.largest, fmt) for clip in clips])])


def _error_of_integers(edges: Float64, counts: Float64, scale: float, fmt: Format) -> float:
    """Sum of (x - q(x))^2, up to a constant factor: exact for x uniform within each bin of equal width.

    In units of the scale, the integral of (v - q(v))^2 from 0 to u is 1/12 for each whole step and r^3 / 3 for the rest
    r = u - q(u). Past the last code r goes on growing, so that the same formula counts what clipping costs.
    """
    u = edges / scale
    code = np.minimum(np.rint(u), fmt.largest)
    rest = u - code
    return float(scale**3 * (np.diff(code / 12 + rest * rest * rest / 3) @ counts))


def _error_of_floats(edges: Float64, counts: Float64, scale: float, fmt: Format) -> float:
    """Sum of (x - q(x))^2, x taken at the middle of its bin; below the middle of the first one a float has steps of
    its own, which no bin resolves and which cost nothing beside the others."""
    middles = ((edges[1:] + edges[:-1]) / (2 * scale)).astype(np.float32)
    off = (fmt.round_steps(middles.copy()) - middles).astype(np.float64)
    return float(scale**2 * (np.square(off) @ counts))


class Entropy(_Histogrammed):
    """Least KL divergence, by the procedure of TensorRT's entropy calibrator."""

    def _clip(self, fmt: Format) -> float:
        absmax = self.histogram.absmax
        if absmax == 0:
            return 0.0
        edges = np.linspace(0, absmax, _ENTROPY_BINS + 1)
        below = np.concatenate([[0], np.cumsum(self.histogram.counts)])
        divergences = kl_divergences(np.diff(np.interp(edges, self.histogram.edges, below)), 2 ** (fmt.bits - 1))
        from_the_end = int(np.argmin(divergences[::-1]))  # of equal ones, the widest clip
        return float(edges[_ENTROPY_BINS - from_the_end])


def make_observer(kind: Kind, *, percentile: float = 99.99, importance: Float64 | None = None) -> Observer:
    """A new observer.

    Args:
        percentile: of |x|, for that kind only.
        importance: what a squared error in each channel (last axis) costs, for `mse` only; None: all the same.

    Raises:
        ValueError: unknown kind, percentile outside (0, 100].
    """
    match kind:
        case "minmax":
            return MinMax()
        case "percentile":
            return Percentile(percentile)
        case "mse":
            return MSE(importance)
        case "entropy":
            return Entropy()
    raise ValueError(f"unknown observer {kind!r}; expected minmax, percentile, mse or entropy")
