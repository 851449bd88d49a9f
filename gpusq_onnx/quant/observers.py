"""Observers: watch an activation batch by batch, then say which symmetric scale it should have.

    minmax        clip = max|x|
    percentile    clip = the least value that a given share of |x| does not exceed (99.99 %)
    mse           clip of least expected (x - q(x))^2 over all that was seen
    snr           clip of highest mean signal-to-noise ratio of a sample, in dB
    entropy       clip of least KL divergence of the quantised histogram from the clipped one (TensorRT's calibrator)

    scale = clip / largest

All state is one `Histogram`, or a sum of curves: memory does not depend on how much was seen, nor the result on the
order. Negative values count by their magnitude; the extra code -128 is not exploited.

Why decibels: a squared error over all samples is the error of the samples with the largest values. Where one image in
16 holds values 15 times as large as the others' (feature pyramids do), `mse` gives it a scale that leaves the other 15
next to no codes; a mean of decibels lets each image count once, and none can lose more than its signal.
"""

import math
from abc import ABC, abstractmethod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.quant.entropy import kl_divergences
from gpusq_onnx.quant.formats import INT8, Format, clamp_scale
from gpusq_onnx.quant.histogram import Histogram, extremes

Float64 = NDArray[np.float64]
Kind = Literal["auto", "minmax", "percentile", "mse", "snr", "entropy"]

_ENTROPY_BINS = 2048  # as TensorRT's calibrator
_SAMPLE_BINS, _SAMPLE_ELEMENTS = 512, 1 << 14  # of one sample's histogram
_STEPS = 4  # clips an octave; their parabola finds the best between them
_OCTAVES_BELOW, _OCTAVES_ABOVE = 7, 7  # a sample's largest value
_BOTTOM, _TOP = -160, 130  # octaves: all that a float32 can hold
_OCTAVE_DB = 20 * math.log10(2)


class Observer(ABC):
    """Streaming statistics of one activation tensor."""

    @abstractmethod
    def update(self, x: NDArray[Any], samples: int = 1) -> None:
        """Take in an array of any shape and real dtype; `samples` of one size lie one after another in it.

        Raises:
            ValueError: NaN or infinity.
        """

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

    def update(self, x: NDArray[Any], samples: int = 1) -> None:
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

    def update(self, x: NDArray[Any], samples: int = 1) -> None:
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
        return float(clips[np.argmin(_errors(self.histogram, clips, fmt))])


class SNR(Observer):
    """Highest mean over the samples of 10 log10(sum x^2 / sum (x - q(x))^2), elements weighted by importance.

    Each sample's curve over a grid of clips, a quarter octave apart wherever the sample lies, is added to one sum, in
    whole millionths of a decibel: the order of the samples leaves no trace. Outside a sample's own grid its ratio falls
    by 6 dB an octave above and is 0 below.

    Args:
        fmt: that the scale is asked for.
        importance: what a squared error in each channel (last axis) costs; None: all the same.
    """

    def __init__(self, fmt: Format, importance: Float64 | None = None) -> None:
        self._fmt, self._importance = fmt, importance
        self._sum = np.zeros(_STEPS * (_TOP - _BOTTOM), np.int64)
        self._absmax, self._samples = -1.0, 0

    def update(self, x: NDArray[Any], samples: int = 1) -> None:
        for part in np.split(x.reshape(-1, x.shape[-1] if x.ndim else 1), samples):
            seen = Histogram(_SAMPLE_BINS, _SAMPLE_ELEMENTS)
            seen.update(part, self._importance)
            if part.size:
                self._absmax = max(self._absmax, seen.absmax)
                self._add(seen)

    def _add(self, seen: Histogram) -> None:
        power = float(np.diff(seen.edges**3) @ seen.counts) / (3 * seen.width)
        if power == 0:
            return  # nothing but zeros: any clip will do
        first = math.floor(_STEPS * math.log2(seen.absmax)) + 1 - _STEPS * _OCTAVES_BELOW
        clips = 2.0 ** (np.arange(first, first + _STEPS * (_OCTAVES_BELOW + _OCTAVES_ABOVE)) / _STEPS)
        ratio = 10 * np.log10(power / np.maximum(_errors(seen, clips, self._fmt), 1e-9 * power))
        falling = np.arange(ratio[-1], 0, -_OCTAVE_DB / _STEPS)[1:]
        curve = np.rint(1e6 * np.maximum(np.concatenate([ratio, falling]), 0)).astype(np.int64)
        start = first - _STEPS * _BOTTOM
        low, high = max(start, 0), min(start + len(curve), len(self._sum))
        self._sum[low:high] += curve[low - start : high - start]
        self._samples += 1

    def _seen(self) -> bool:
        return self._absmax >= 0

    def _clip(self, fmt: Format) -> float:
        if fmt != self._fmt:
            raise ValueError(f"the observer watched for {self._fmt}; asked for a scale of {fmt}")
        if not self._samples:
            return self._absmax
        best = int(np.argmax(self._sum))
        left, centre, right = (float(self._sum[max(0, min(best + i, len(self._sum) - 1))]) for i in (-1, 0, 1))
        bend = 2 * centre - left - right
        peak = best + (0.5 * (right - left) / bend if bend > 0 else 0)  # of the parabola through three points
        return float(min(2.0 ** (peak / _STEPS + _BOTTOM), self._absmax))


def _errors(seen: Histogram, clips: Float64, fmt: Format) -> Float64:
    """Sum of (x - q(x))^2 at each clip."""
    used = int(seen.absmax / seen.width) + 1
    error = _error_of_floats if fmt.grid else _error_of_integers
    return error(seen.edges[: used + 1], seen.counts[:used], clips / fmt.largest, fmt)


def _error_of_integers(edges: Float64, counts: Float64, scales: Float64, fmt: Format) -> Float64:
    """Exact for x uniform within each bin of equal width.

    In units of the scale, the integral of (v - q(v))^2 from 0 to u is 1/12 for each whole step and r^3 / 3 for the rest
    r = u - q(u). Past the last code r goes on growing, so that the same formula counts what clipping costs.
    """
    u = edges / scales[:, None]
    code = np.minimum(np.rint(u), fmt.largest)
    rest = u - code
    errors: Float64 = scales**3 / edges[1] * (np.diff(code / 12 + rest * rest * rest / 3) @ counts)
    return errors


def _error_of_floats(edges: Float64, counts: Float64, scales: Float64, fmt: Format) -> Float64:
    """x taken at the middle of its bin; below the middle of the first one a float has steps of its own, which no bin
    resolves and which cost nothing beside the others."""
    middles = ((edges[1:] + edges[:-1]) / (2 * scales[:, None])).astype(np.float32)
    off = (fmt.round_steps(middles.copy()) - middles).astype(np.float64)
    errors: Float64 = scales**2 * (np.square(off) @ counts)
    return errors


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


def make_observer(
    kind: Kind, *, percentile: float = 99.99, importance: Float64 | None = None, fmt: Format = INT8
) -> Observer:
    """A new observer.

    Args:
        kind: auto: `snr`, and for a float grid `minmax`: it rounds each value by its own size, so a wide clip costs
            nothing, and a narrow one cuts off the few huge activations of a trained ViT (docs/benchmarks.md).
        percentile: of |x|, for that kind only.
        importance: what a squared error in each channel (last axis) costs, for `mse` and `snr`; None: all the same.
        fmt: that a scale will be asked for, for `auto` and `snr`.

    Raises:
        ValueError: unknown kind, percentile outside (0, 100].
    """
    if kind == "auto":
        kind = "minmax" if fmt.grid else "snr"
    match kind:
        case "minmax":
            return MinMax()
        case "percentile":
            return Percentile(percentile)
        case "mse":
            return MSE(importance)
        case "snr":
            return SNR(fmt, importance)
        case "entropy":
            return Entropy()
    raise ValueError(f"unknown observer {kind!r}; expected auto, minmax, percentile, mse, snr or entropy")
