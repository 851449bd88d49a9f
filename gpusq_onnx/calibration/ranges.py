"""What quantising needs to know of each activation: range, outlier channels, and the mean error that rounding leaves.

One look at the first batch decides the equalising factors (outlier channels last: they sit in the weights that made
them) and the offset of what is one-sided; all batches fill the observers with what these leave; a second look at a few
images, at the scales then known, gives the mean rounding error a channel, which the biases absorb.

Source: SmoothQuant (arXiv 2211.10438) for the factors, Nagel et al. (arXiv 1906.04721) for bias correction. Limits: the
error is local, each tensor's own; what it does to later layers is not followed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.pipeline.details import When
from gpusq_onnx.quant.dynamic import dynamic_quantize, outer_scale
from gpusq_onnx.quant.equalise import Float32, input_factors, middle, outlier_ratio, output_factors, peaks
from gpusq_onnx.quant.formats import FORMATS, Format, fake_quantize
from gpusq_onnx.quant.observers import Observer
from gpusq_onnx.sums import column_dots, matvec

OUTPUT_OUTLIERS = 8.0  # an output whose largest channel peak is this many times the median one is worth a Mul
_PIECE = 1 << 18  # multiplications in one product of the attention error: its temporaries stay in a core's cache
WORTH_A_NODE = 20.0  # an input gets a Mul where that makes the expected error this much smaller; clipping mends less

MakeObserver = Callable[[NDArray[np.float64] | None, Format], Observer]


@dataclass
class Watch:
    """One activation under observation.

    Attributes:
        make: makes the observer, given each channel's importance (None: all the same) and the format.
        format: that the activation will have.
        when: whether to equalise: never, where the first batch shows outlier channels, or always (it costs no node).
        w: reads the rows [out, k] of all weights that read the tensor; None for an output or an attention operand.
        block: elements that share a scale at run time, for a format whose activations get theirs there; 0 elsewhere.
        centred: whether to take out the middle of one-sided values.
        factors: chosen at the first batch; None where nothing is to be equalised.
        offset: chosen then, too, of what the factors leave; 0 where there is none.
    """

    make: MakeObserver
    format: Format
    when: When = "never"
    w: Callable[[], NDArray[Any]] | None = None
    block: int = 0
    centred: bool = False
    factors: Float32 | None = None
    offset: float = 0.0
    _observer: Observer | None = None

    def update(self, x: NDArray[Any], images: int = 1) -> None:
        """Take in a batch x[..., channels] of so many images."""
        if self._observer is None:
            w = None if self.w is None else self.w()
            self._decide(x, w)
            self._observer = self.make(self._importance(w), self.format)
        whole = x.size // (x.shape[-1] if x.ndim else 1) % images == 0
        self._observer.update(self.equalised(x), images if whole else 1)

    def scale(self) -> float:
        """The scale of the equalised values; of a format with scales at run time, the number over these."""
        assert self._observer is not None
        scale = self._observer.scale(self.format)
        return outer_scale(scale * self.format.largest, self.format) if self.block else scale

    def rounded(self, x: NDArray[Any], scale: float) -> Float32:
        """What quantising equalised values x[..., channels] and back makes of them."""
        if self.block:
            return dynamic_quantize(x, scale, self.format, self.block)
        return fake_quantize(x, scale, self.format)

    def equalised(self, x: NDArray[Any]) -> NDArray[Any]:
        """x / s - offset, or what of it there is."""
        x = x if self.factors is None else x / self.factors
        return x - np.asarray(self.offset, x.dtype) if self.offset else x

    def _decide(self, x: NDArray[Any], w: NDArray[Any] | None) -> None:
        if self.when != "never":
            self.factors = self._best_factors(x, w)
        if self.centred:
            self.offset = middle(self.equalised(x))

    def _best_factors(self, x: NDArray[Any], w: NDArray[Any] | None) -> Float32 | None:
        peak = peaks(x)
        if w is None:
            return output_factors(peak) if outlier_ratio(peak) >= OUTPUT_OUTLIERS else None
        flat = x.reshape(-1, x.shape[-1])
        power = column_dots(flat, flat) / max(1, len(flat))
        factors, gain = input_factors(peak, power, w)
        return factors if gain >= (1.0 if self.when == "always" else WORTH_A_NODE) else None

    def _importance(self, w: NDArray[Any] | None) -> NDArray[np.float64] | None:
        """|w_k s_k|^2: what a squared error in channel k does to the output; None where the weights are all zero."""
        if w is None:
            return None
        power = column_dots(w, w)
        power = power if self.factors is None else power * np.square(self.factors.astype(np.float64))
        mean = float(power.mean())
        return power / mean if mean > 0 else None


@dataclass
class MeanError:
    """Running means a channel of a Linear's input before and after rounding, in the equalised domain.

    Clipped values count as they are: the few tokens that clipping hits must not move the bias of all the others.
    """

    watch: Watch
    scale: float
    rows: int = 0
    plain: NDArray[np.float64] = field(default_factory=lambda: np.zeros(()))
    rounded: NDArray[np.float64] = field(default_factory=lambda: np.zeros(()))

    def update(self, x: NDArray[Any]) -> None:
        """Take in a batch x[..., k]."""
        flat = self.watch.equalised(x.reshape(-1, x.shape[-1])).astype(np.float32, copy=False)
        self.plain = self.plain + flat.sum(axis=0, dtype=np.float64)
        fmt, rounded = self.watch.format, self.watch.rounded(flat, self.scale)
        top = FORMATS[fmt.scales].largest * fmt.largest if self.watch.block else fmt.largest + 0.5
        clipped = np.abs(flat) > top * self.scale
        self.rounded = self.rounded + np.where(clipped, flat, rounded).sum(axis=0, dtype=np.float64)
        self.rows += len(flat)

    def shift(self, w: Float32, w_rounded: Float32) -> Float32:
        """What to add to the bias[out] so that the mean output of w[out, k] is unchanged."""
        rows = max(1, self.rows)
        lost, left = (self.plain - self.rounded) / rows, self.rounded / rows
        return (matvec(w, lost) + matvec(w - w_rounded, left)).astype(np.float32)


class ContextError:
    """What rounding its two operands does to softmax(QK)V, for several scales of the softmax output.

    Rounding many small probabilities is not noise: those below half a step vanish and those above grow, together, so
    the scale is judged by the error of the product and not by that of the probabilities.

    Args:
        softmax_scales: candidates.
        value_scale: of V.
        formats: of the softmax output and of V.
    """

    def __init__(self, softmax_scales: Sequence[float], value_scale: float, formats: tuple[Format, Format]) -> None:
        self._formats = formats
        self._scales = tuple(softmax_scales)
        self._value_scale = value_scale
        self._squared = np.zeros(len(self._scales))
        self._sums: NDArray[np.float64] = np.zeros(())
        self._rows = 0
        self._placed = True

    def update(self, softmax: NDArray[Any], values: NDArray[Any], images: int) -> None:
        """Take in a batch: softmax[..., queries, keys] and values[..., keys, depth], of so many images.

        What is before these axes is broadcast, as MatMul does (keys and values that several heads share): it is
        (batch, heads) or the two as one. Where it is anything else, the heads' places are unknown: there is no `mean`.
        """
        lead = np.broadcast_shapes(softmax.shape[:-2], values.shape[:-2])
        heads = lead[-1] if len(lead) > 1 else max(1, math.prod(lead) // images)
        if len(lead) > 2 or math.prod(lead) % heads:
            heads, self._placed = 1, False
        queries, keys = softmax.shape[-2:]
        depth = values.shape[-1]
        softmax = np.broadcast_to(softmax, (*lead, queries, keys)).reshape(-1, heads, queries, keys)
        values = np.broadcast_to(values, (*lead, keys, depth)).reshape(-1, heads, keys, depth)
        rounded_values = fake_quantize(values, self._value_scale, self._formats[1])
        rows = max(1, _PIECE // (keys * depth))
        sums = np.zeros((len(self._scales), heads, depth))
        for piece in (softmax[:, :, start : start + rows] for start in range(0, queries, rows)):
            plain = piece @ values
            for index, scale in enumerate(self._scales):
                error = fake_quantize(piece, scale, self._formats[0]) @ rounded_values - plain
                self._squared[index] += float(np.square(error).sum(dtype=np.float64))
                sums[index] += error.sum(axis=(0, 2), dtype=np.float64)
        self._rows += len(softmax) * queries
        self._placed &= self._sums.shape in ((), sums.shape)
        if self._placed:
            self._sums = self._sums + sums

    @property
    def scale(self) -> float:
        """The candidate of least squared error."""
        return self._scales[int(np.argmin(self._squared))]

    @property
    def mean(self) -> NDArray[np.float64]:
        """The mean error [heads * depth] at that scale; of no elements where the heads' places are not known."""
        if not self._placed:
            return np.zeros(0)
        sums: NDArray[np.float64] = self._sums[int(np.argmin(self._squared))] / max(1, self._rows)
        return sums.reshape(-1)
