"""Layer by layer, what became of a model's weights: sparsity, error, kernel, scales, and histograms of the values.

    error    |W - W' f| / |W|, Frobenius norms; W' is what the stored weight is worth after Q and DQ, and f is the
             factor of each input channel that fits best: equalising moves such factors into the layer before

Weights are matched by name. Histograms are of the layers with the largest errors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.qdq.codes import codes_of, weight_format, weight_scales_of
from gpusq_onnx.graph.sites import Site
from gpusq_onnx.graph.structure import analyse
from gpusq_onnx.quant.formats import dequantize
from gpusq_onnx.report.inspection import Inspection
from gpusq_onnx.report.page.pictures import HistogramBars

SHOWN = 12  # histograms
_BINS = 61

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class LayerRow:
    """One weight.

    Attributes:
        name, module, role, shape, kernel: see `inspection.WeightReport`.
        output: the tensor that the layer gives, after its bias.
        pattern: the narrowest that holds; "dense".
        zeros: share of the elements.
        error: None where the first model has no such weight.
        scales: least, median and largest; empty of a float weight.
    """

    name: str
    module: str
    role: str
    shape: tuple[int, int]
    kernel: str
    output: str
    pattern: str
    zeros: float
    error: float | None
    scales: tuple[float, ...]

    @property
    def label(self) -> str:
        """The module, or the tensor where the exporter recorded none."""
        return self.module or self.name


def layers_of(dense: Model, other: Model, inspected: Inspection) -> tuple[list[LayerRow], list[HistogramBars]]:
    """Every weight of `other` against that of `dense`; and the histograms of the worst, in graph order.

    `inspected`: what `inspect_model` says of `other`.
    """
    known = {site.name: site for site in analyse(dense).sites}
    reports = {weight.name: weight for weight in inspected.weights}
    sites = {site.name: site for site in analyse(other).sites}
    found = [
        LayerRow(
            name,
            report.module,
            report.role,
            report.shape,
            str(report.kernel),
            str(sites[name].output.name),
            report.patterns[0] if report.patterns else "dense",
            report.zeros,
            _error(known[name], sites[name]) if name in known else None,
            tuple(_scales(sites[name])),
        )
        for name, report in reports.items()
        if name in sites
    ]
    worst = sorted((layer for layer in found if layer.error), key=lambda layer: -(layer.error or 0.0))[:SHOWN]
    shown = [_histogram(layer, known[layer.name], sites[layer.name]) for layer in found if layer in worst]
    return found, shown


def worth(site: Site) -> Float32:
    """w[out, k] as the model computes with it."""
    if not site.has_scales:
        return np.asarray(site.read(), np.float32)
    return dequantize(codes_of(site), weight_scales_of(site))


def up_to_channels(before: NDArray[np.floating], after: NDArray[np.floating]) -> float:
    """The error of w[out, k], each column of `after` times the factor that fits best.

    >>> w = np.array([[1.0, 2.0], [3.0, 4.0]])
    >>> up_to_channels(w, w * [0.5, 2]), round(up_to_channels(w, w * [[1, 0], [1, 1]]), 4)
    (0.0, 0.3651)
    """
    a, b = before.astype(np.float64), after.astype(np.float64)
    size = np.square(b).sum(axis=0)
    factor = np.where(size > 0, (a * b).sum(axis=0) / np.where(size > 0, size, 1), 0)
    whole = float(np.linalg.norm(a))
    return float(np.linalg.norm(a - b * factor)) / whole if whole else 0.0


def _error(before: Site, after: Site) -> float | None:
    pair = worth(before), worth(after)
    return up_to_channels(*pair) if pair[0].shape == pair[1].shape else None


def _scales(site: Site) -> Iterator[float]:
    if site.has_scales:
        scales = weight_scales_of(site)
        values = scales.values * (1.0 if scales.outer is None else scales.outer)
        yield from (float(values.min()), float(np.median(values)), float(values.max()))


def _histogram(layer: LayerRow, before: Site, after: Site) -> HistogramBars:
    a, b = worth(before), worth(after)
    end = float(max(np.abs(a).max(), np.abs(b).max())) or 1.0
    edges = np.linspace(-end, end, _BINS + 1)
    counts = [np.histogram(x, edges)[0].astype(float).tolist() for x in (b, a)]
    fmt = weight_format(after)
    grid = (fmt.lowest * layer.scales[1], fmt.largest * layer.scales[1]) if fmt and layer.scales else ()
    return HistogramBars(layer.label, edges.tolist(), counts[0], grid, counts[1])
