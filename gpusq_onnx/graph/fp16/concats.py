"""Concats between pairs with FP16 scales, of which onnxruntime makes what it then refuses to load.

Where a DequantizeLinear gives every input of a Concat and QuantizeLinears alone read it, a default session puts a
QLinearConcat in place of all, and that takes no FP16 scales: the model is invalid. It finds them through layout, too,
which it moves pairs across. There the QuantizeLinear works in FP32, by the same scale, after a Cast; what its
DequantizeLinear gives stays FP16.

Source: onnxruntime 1.31, `qdq_selectors.cc` (VariadicNodeGroupSelector), `qdq_propagation.cc`. Limits: the main graph,
not the bodies of If and Loop.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from gpusq_onnx.graph.dataflow import maker_through, readers_through
from gpusq_onnx.graph.edits import Names
from gpusq_onnx.graph.fp16.policy import HALF, SINGLE
from gpusq_onnx.graph.model import Model, values_of
from gpusq_onnx.graph.operators import MOVES, Is, operators

_CROSSED = MOVES - operators(Is.JOINS | Is.WRITES) | {"MaxPool"}  # pairs move across these, or might


def protect_concats(model: Model) -> list[str]:
    """Let such QuantizeLinears read FP32, in place; the names of the Concats."""
    found = [(node, quantisers) for node in model.graph.nodes if (quantisers := _fused(node))]
    if not found:
        return []  # nearly always, and a walk over all names costs more than this one
    fresh, nodes = Names(model).fresh, list[gs.Node]()
    chosen = {id(quantiser) for _, quantisers in found for quantiser in quantisers}
    for node in model.graph.nodes:
        if id(node) in chosen:
            x, scale = node.inputs[:2]
            wide = gs.Variable(fresh(f"{x.name}_fp32"), SINGLE, x.shape)
            nodes.append(gs.Node("Cast", fresh(f"{x.name}_Cast_fp32"), {"to": TensorProto.FLOAT}, [x], [wide]))
            node.inputs[0] = wide
            node.inputs[1] = gs.Constant(fresh(f"{scale.name}_fp32"), values_of(scale).astype(np.float32))
        nodes.append(node)
    model.graph.nodes[:] = nodes
    return [str(node.name) for node, _ in found]


def _fused(node: gs.Node) -> list[gs.Node]:
    """The QuantizeLinears with FP16 scales that alone read a Concat of dequantised data."""
    if node.op != "Concat" or not all(map(_is_dequantised, node.inputs)):
        return []
    readers = list(readers_through(node.outputs[0], _CROSSED))
    halves = (reader.op == "QuantizeLinear" and reader.inputs[1].dtype == HALF for reader in readers)
    return readers if all(halves) else []


def _is_dequantised(tensor: gs.Tensor) -> bool:
    maker = maker_through(tensor, _CROSSED)
    return maker is not None and maker.op == "DequantizeLinear"
