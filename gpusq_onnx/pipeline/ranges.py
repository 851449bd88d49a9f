"""What INT8 needs to know of each activation: its range, its outlier channels, and the mean error that rounding leaves.

One look at the first batch decides the equalising factors (outlier channels last: they sit in the weights that made
them); all batches fill the observers with the equalised values; a second look at a few images, at the scales then known,
gives the mean rounding error a channel, which the biases take up.

Source: SmoothQuant (arXiv 2211.10438) for the factors, Nagel et al. (arXiv 1906.04721) for bias correction. Limits: the
error is local, each tensor's own; what it does to later layers is not followed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.quant.equalise import Float32, input_factors, outlier_ratio, output_factors, peaks
from gpusq_onnx.quant.formats import INT8, fake_quantize
from gpusq_onnx.quant.observers import Observer

OUTLIERS = 8.0  # a tensor whose largest channel peak is this many times the median one is worth a Mul

When = Literal["never", "outliers", "always"]


@dataclass
class Watch:
    """One activation under observation.

    Attributes:
        observer: sees the equalised values.
        when: whether to equalise: never, where the first batch shows outlier channels, or always (it costs no node).
        w_peak: column peaks[k] of the weights that read the tensor; None for a Linear's output.
        alpha: how much of the range goes into the weights.
        factors: chosen at the first batch; None where nothing is to be equalised.
    """

    observer: Observer
    when: When = "never"
    w_peak: Float32 | None = None
    alpha: float = 0.8
    factors: Float32 | None = None
    _decided: bool = False

    def update(self, x: NDArray[Any]) -> None:
        """Take in a batch x[..., channels]."""
        if not self._decided and self.when != "never":
            self._decide(peaks(x))
        self._decided = True
        self.observer.update(self.equalised(x))

    def equalised(self, x: NDArray[Any]) -> NDArray[Any]:
        """x / s, or x itself."""
        return x if self.factors is None else x / self.factors

    def _decide(self, peak: Float32) -> None:
        if self.when == "outliers" and outlier_ratio(peak) < OUTLIERS:
            return
        if self.w_peak is None:
            self.factors = output_factors(peak)
        else:
            self.factors = input_factors(peak, self.w_peak, self.alpha)


@dataclass
class MeanError:
    """Running means a channel of a Linear's input before and after rounding, in the equalised domain."""

    watch: Watch
    scale: float
    rows: int = 0
    plain: NDArray[np.float64] = field(default_factory=lambda: np.zeros(()))
    rounded: NDArray[np.float64] = field(default_factory=lambda: np.zeros(()))

    def update(self, x: NDArray[Any]) -> None:
        """Take in a batch x[..., k]."""
        flat = self.watch.equalised(x.reshape(-1, x.shape[-1])).astype(np.float32, copy=False)
        self.plain = self.plain + flat.sum(axis=0, dtype=np.float64)
        self.rounded = self.rounded + fake_quantize(flat, self.scale, INT8).sum(axis=0, dtype=np.float64)
        self.rows += len(flat)

    def shift(self, w: NDArray[Any], w_rounded: NDArray[Any]) -> Float32:
        """What to add to the bias[out] so that the mean output of w[out, k] is unchanged."""
        wanted = w.astype(np.float64) @ self.plain
        return ((wanted - w_rounded.astype(np.float64) @ self.rounded) / max(1, self.rows)).astype(np.float32)


@dataclass
class ContextError:
    """Mean error a channel of softmax(QK)V that rounding its two operands leaves, channels in (head, depth) order."""

    softmax_scale: float
    value_scale: float
    rows: int = 0
    total: NDArray[np.float64] = field(default_factory=lambda: np.zeros(()))

    def update(self, softmax: NDArray[Any], values: NDArray[Any]) -> None:
        """Take in a batch: softmax[..., heads, queries, keys] and values[..., heads, keys, depth]."""
        plain = softmax @ values
        rounded = fake_quantize(softmax, self.softmax_scale, INT8) @ fake_quantize(values, self.value_scale, INT8)
        error = (rounded - plain).reshape(-1, *plain.shape[-3:])
        self.total = self.total + error.sum(axis=(0, 2), dtype=np.float64).reshape(-1)
        self.rows += error.shape[0] * error.shape[2]

    @property
    def mean(self) -> NDArray[np.float64]:
        """The mean error [heads * depth]."""
        return self.total / max(1, self.rows)
