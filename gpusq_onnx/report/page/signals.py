"""What a model's quantised activations are, beside the scales that they are rounded to: seen on a few images.

Each pair of one scale is looked at where its QuantizeLinear reads; the share of values beyond the ends of its grid is
clipped. Runs in onnxruntime, Q and DQ as written. Limits: scales in blocks and those taken at run time are left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.data.source import Source
from gpusq_onnx.graph.dataflow import Dataflow
from gpusq_onnx.graph.io import write_tapped
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.qdq.codes import scales_of
from gpusq_onnx.graph.qdq.quantize_nodes import activation_format
from gpusq_onnx.graph.shapes import infer_shapes
from gpusq_onnx.report.page.pictures import HistogramBars
from gpusq_onnx.runtime.ort import Session
from gpusq_onnx.scratch import Scratch

IMAGES = 8
_BINS = 60
_BEYOND = 1.3  # of the grid, what is shown


@dataclass
class Signal:
    """One quantised activation.

    Attributes:
        name, format: of the tensor and its grid.
        scale: of one step.
        low, high: the ends of the grid, in the tensor's units.
        least, largest: of the values seen.
        clipped: share of the values beyond the ends.
    """

    name: str
    format: str
    scale: float
    low: float
    high: float
    least: float = np.inf
    largest: float = -np.inf
    seen: int = 0
    beyond: int = 0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_BINS, np.int64))

    @property
    def clipped(self) -> float:
        """The share of values beyond the ends."""
        return self.beyond / self.seen if self.seen else 0.0

    @property
    def edges(self) -> NDArray[np.float64]:
        """Of the bins."""
        reach = max(abs(self.low), abs(self.high)) * _BEYOND
        return np.linspace(-reach if self.low < 0 else -0.1 * reach, reach, _BINS + 1)

    def update(self, values: NDArray[Any]) -> None:
        """Count a batch."""
        x = values[np.isfinite(values)].astype(np.float32)
        if x.size:
            self.least, self.largest = min(self.least, float(x.min())), max(self.largest, float(x.max()))
            self.seen += x.size
            self.beyond += int(np.count_nonzero((x < self.low - self.scale / 2) | (x > self.high + self.scale / 2)))
            self.counts += np.histogram(np.clip(x, self.edges[0], self.edges[-1]), self.edges)[0]

    def histogram(self) -> HistogramBars:
        """The picture; what is beyond its edges is in the last bins."""
        return HistogramBars(self.name, self.edges.tolist(), self.counts.astype(float).tolist(), (self.low, self.high))


def signals_of(model: Model, source: Source, images: int = IMAGES) -> tuple[list[Signal], int]:
    """The quantised activations of a model in graph order, and on how many images they were seen: the first ones."""
    found = _pairs(model)
    if not found:
        return [], 0
    with Scratch() as folder:
        path = folder / "tapped.onnx"
        write_tapped(model, path, list(found), infer_shapes(model)[1])
        session, seen = Session(path, exact_qdq=True), 0
        wanted = [info.name for info in session.inputs()]
        for batch in source.batches(1):
            values = session.run({name: batch.feed[name] for name in wanted}, list(found))
            for name, signal in found.items():
                signal.update(values[name])
            seen += batch.size
            if seen >= images:
                break
    return list(found.values()), seen


def _pairs(model: Model) -> dict[str, Signal]:
    flow, given = Dataflow(model), {str(tensor.name) for tensor in model.graph.inputs}
    found = {}
    for node in model.graph.nodes:
        if node.op != "QuantizeLinear" or not flow.is_data(node.inputs[0]):
            continue
        fmt, scales = activation_format(node), scales_of(node)
        if fmt is None or scales.values.size != 1:
            continue
        source, scale = node.inputs[0], float(scales.along(()))
        if source.inputs and source.inputs[0].op == "Clip" and fmt.carried:
            source = source.inputs[0].inputs[0]
        name = str(source.name)
        if name not in given:
            found[name] = Signal(name, fmt.name, scale, fmt.lowest * scale, fmt.largest * scale)
    return found
