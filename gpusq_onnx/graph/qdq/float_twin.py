"""The float model inside a Q/DQ model: what is timed beside it.

    Q(x) -> DQ -> readers            x -> readers        Q: QuantizeLinear, or a node that quantises at run time
    INT8 constant -> DQ -> readers   float constant = codes · scale -> readers
    x -> Clip -> Q -> DQ -> readers  x -> readers, where the Clip ends at a grid that the codes' type carries

Everything else stays: sparse weights stay sparse, FP16 stays FP16. Limits: a DQ that is a graph output is left.
"""

from __future__ import annotations

from collections.abc import Collection, Container

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from gpusq_onnx.graph.edits import Names, rewire, unlink
from gpusq_onnx.graph.model import Model, type_name, values_of
from gpusq_onnx.graph.operators import QUANTISERS
from gpusq_onnx.graph.qdq.codes import scales_another, scales_of
from gpusq_onnx.graph.qdq.quantize_nodes import activation_format
from gpusq_onnx.quant.formats import dequantize


def remove_quantisation(model: Model) -> int:
    """Take the Q/DQ pairs out of the model, in place; how many DequantizeLinear nodes went."""
    removed = constants_of_codes(model)
    outputs = {id(tensor) for tensor in model.graph.outputs}
    for node in model.graph.nodes:
        codes = node.inputs[0] if node.op == "DequantizeLinear" and id(node.outputs[0]) not in outputs else None
        if codes is None or not codes.inputs or codes.inputs[0].op not in QUANTISERS or codes is not _codes(codes):
            continue
        rewire(node.outputs[0].outputs, node.outputs[0], _before(codes.inputs[0]))
        unlink(node)
        removed += 1
    _drop_dead(model, QUANTISERS | {"DequantizeLinear", "Clip"})
    return removed


def constants_of_codes(model: Model, elements: Container[str] | None = None) -> int:
    """Put floats in place of constant codes (of these ONNX types; None: all) and their DQ; how many DQs went."""
    outputs = {id(tensor) for tensor in model.graph.outputs}
    fresh, removed = Names(model).fresh, 0
    for node in model.graph.nodes:
        codes = node.inputs[0] if node.op == "DequantizeLinear" and id(node.outputs[0]) not in outputs else None
        if not isinstance(codes, gs.Constant) or (elements is not None and type_name(codes) not in elements):
            continue
        if scales_another(node):
            continue  # block scales, which are read where they are used
        rewire(node.outputs[0].outputs, node.outputs[0], gs.Constant(fresh(f"{codes.name}_float"), _values(node)))
        unlink(node)
        removed += 1
    _drop_dead(model, {"DequantizeLinear"})
    return removed


def _before(quantize: gs.Node) -> gs.Tensor:
    """What a QuantizeLinear quantises, before the Clip that belongs to its format."""
    tensor = quantize.inputs[0]
    static = quantize.op == "QuantizeLinear" and not isinstance(tensor, gs.Constant)
    fmt = activation_format(quantize) if static else None
    return tensor.inputs[0].inputs[0] if fmt is not None and fmt.carried else tensor


def _codes(tensor: gs.Tensor) -> gs.Tensor:
    """The first output of what makes a tensor: codes, where block scales come second."""
    return tensor.inputs[0].outputs[0]


def _drop_dead(model: Model, ops: Collection[str]) -> None:
    """Take out nodes of these operators that nobody reads any more."""
    outputs = {id(tensor) for tensor in model.graph.outputs}
    for node in reversed(model.graph.nodes):
        if node.op in ops and all(not tensor.outputs and id(tensor) not in outputs for tensor in node.outputs):
            unlink(node)
    model.graph.nodes[:] = [node for node in model.graph.nodes if node.outputs]


def _values(node: gs.Node) -> NDArray[np.floating]:
    """The float constant that a DequantizeLinear makes of constant codes, in the scale's type."""
    scale = node.inputs[1]
    kind = np.float32 if scale.inputs else scale.dtype
    return np.asarray(dequantize(values_of(node.inputs[0]), scales_of(node)), kind)
