"""What this tool must never write although TensorRT's parser takes it: quantisation that is legal and wrong.

`invariants` refuses a model on its way in for what TensorRT refuses or misreads. The rules here are stricter; they hold
for pairs that our own passes placed:

    opset, domain    opset 20 to 25, Q/DQ of the default domain: what is documented, not what one parser takes
    pairs            codes are read by DequantizeLinear alone, with the scale that made them
    residual         no pair on the residual stream: ViT-B with one scores 5 % top-1, without 84.5 % (docs/tensorrt.md)

Each is a function from the graph to its violations, as in `invariants`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_graphsurgeon as gs

from gpusq_onnx.graph.dataflow import Dataflow, readers_through
from gpusq_onnx.graph.invariants import Rule
from gpusq_onnx.graph.model import Model, values_of
from gpusq_onnx.graph.operators import MOVES, QDQ, is_standard
from gpusq_onnx.graph.opset import LOWEST, NEWEST
from gpusq_onnx.graph.qdq.axes import weight_axes
from gpusq_onnx.graph.sites import before_qdq
from gpusq_onnx.graph.wording import node_label


def opset(model: Model) -> Iterator[str]:
    """The opset is one that TensorRT and onnxruntime both document."""
    if not LOWEST <= model.opset <= NEWEST:
        yield f"opset {model.opset} is not within {LOWEST} to {NEWEST}"


def domain(model: Model) -> Iterator[str]:
    """Q and DQ are ONNX's own."""
    for node in _qdq(model):
        if not is_standard(node):
            yield f"{node_label(node)} is of the domain {node.domain}"


def pairs(model: Model) -> Iterator[str]:
    """Codes go to a DequantizeLinear, if through layout, and come back with the scale that made them."""
    for node in _qdq(model):
        for reader in readers_through(node.outputs[0], MOVES) if node.op == "QuantizeLinear" else ():
            if reader.op in MOVES:
                continue  # the last node: the caller gets the codes
            if reader.op != "DequantizeLinear":
                yield f"{node_label(node)}: {reader.op} {reader.name!r} reads its codes without dequantising them"
            elif not _equal(node.inputs[1], reader.inputs[1]):
                yield f"{node_label(node)} and {reader.name!r} have different scales"


def residual(model: Model) -> Iterator[str]:
    """No Add reads a dequantised sum of two tensors of data."""
    flow = Dataflow(model)
    for node in flow.nodes:
        for tensor in node.inputs if node.op == "Add" else ():
            plain = before_qdq(tensor)
            made = plain.inputs[0] if plain is not tensor and plain.inputs else None
            if made is not None and made.op == "Add" and len(flow.data_inputs(made)) == 2:
                yield f"{node_label(node)} reads {plain.name!r} of the residual stream through a Q/DQ pair"


WRITTEN: tuple[Rule, ...] = (opset, domain, pairs, weight_axes, residual)


def _qdq(model: Model) -> Iterator[gs.Node]:
    return (node for node in model.graph.nodes if node.op in QDQ)


def _equal(one: gs.Tensor, other: gs.Tensor) -> bool:
    if one is other:
        return True
    both = isinstance(one, gs.Constant) and isinstance(other, gs.Constant)
    return both and np.array_equal(values_of(one).astype(np.float32), values_of(other).astype(np.float32))
