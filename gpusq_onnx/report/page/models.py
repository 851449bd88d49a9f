"""A model on the page, layer by layer: sparsity and error, histograms of weights and activations with their scales."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from gpusq_onnx.report.page import pictures
from gpusq_onnx.report.page.blocks import Block, Note, Picture, Section, Table, number
from gpusq_onnx.report.page.layers import SHOWN, LayerRow
from gpusq_onnx.report.page.pictures import HistogramBars
from gpusq_onnx.report.page.signals import Signal

_CHART = 64  # layers in a picture


def of_layers(
    name: str,
    layers: Sequence[LayerRow],
    shown: Sequence[HistogramBars],
    distances: Mapping[str, float | None],
    salt: str,
) -> Section:
    """The weights of the model `name`.

    Args:
        shown: histograms of weights.
        distances: of layers' outputs from the first model's, by tensor; empty where nothing was run.
    """
    return Section(f"Layers: {name}", list(_layers(layers, shown, distances, salt)))


def of_signals(name: str, signals: Sequence[Signal], images: int, salt: str) -> Section:
    """The quantised activations of the model `name`."""
    return Section(f"Activations: {name}", list(_signals(signals, images, salt)))


def _layers(
    layers: Sequence[LayerRow], shown: Sequence[HistogramBars], distances: Mapping[str, float | None], salt: str
) -> Iterator[Block]:
    worst = sorted(layers, key=lambda layer: -(layer.error or 0.0))[:_CHART]
    chart = [layer for layer in layers if layer in worst]
    columns: dict[str, Sequence[float | None]] = {"share of zeros": [layer.zeros for layer in chart]}
    columns["error of the weight"] = [layer.error for layer in chart]
    if distances:
        columns["distance of the output"] = [distances.get(layer.output) for layer in chart]
    few = "" if len(chart) == len(layers) else f"; the {len(chart)} with the largest errors"
    caption = f"Layer by layer{few}: zeros in the weight; its error, |W - W'| / |W|"
    caption += "; how far the layer's output is from the first model's, as a share of it" if distances else ""
    yield Picture(pictures.layers([layer.label for layer in chart], columns, salt), caption)
    header = ["layer", "weight", "role", "[out, k]", "pattern", "zeros", "error", "kernel", "median scale"]
    header += ["output's distance"] if distances else []
    rows = []
    for layer in layers:
        row = [layer.label, layer.name, layer.role, " x ".join(map(str, layer.shape)), layer.pattern]
        row += [f"{layer.zeros:.1%}", number(layer.error, ".3g"), layer.kernel]
        row += [number(layer.scales[1] if layer.scales else None, ".3g")]
        rows.append([*row, number(distances.get(layer.output), ".3g")] if distances else row)
    yield Table("Every layer", header, rows, (5, 6, 8, 9), folded=True)
    if shown:
        caption = f"Weights before (filled) and after (line), the {len(shown)} layers with the largest errors"
        caption += ", counts on a logarithmic scale; red: the ends of the grid at the median scale"
        yield Picture(pictures.histograms(shown, f"{salt}w"), caption, folded=True)


def _signals(signals: Sequence[Signal], images: int, salt: str) -> Iterator[Block]:
    worst = sorted(signals, key=lambda signal: -signal.clipped)[:SHOWN]
    shown = [signal for signal in signals if signal in worst]
    yield Note(f"{len(signals)} quantised activations, seen on {images} images")
    caption = f"The {len(shown)} that are clipped most, counts on a logarithmic scale; red: the ends of the grid"
    yield Picture(pictures.histograms([signal.histogram() for signal in shown], f"{salt}a"), caption)
    header = ["activation", "format", "scale", "grid", "least", "largest", "clipped"]
    rows = [
        [s.name, s.format, f"{s.scale:.3g}", f"{s.low:.3g} to {s.high:.3g}", *ends, f"{s.clipped:.3%}"]
        for s in signals
        for ends in [map(number, (s.least, s.largest))]
    ]
    yield Table("Every quantised activation", header, rows, (2, 4, 5, 6), folded=True)
