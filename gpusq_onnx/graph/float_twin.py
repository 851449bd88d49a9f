"""The float model inside a Q/DQ model: what is timed beside it.

    Q(x) -> DQ -> readers            x -> readers
    INT8 constant -> DQ -> readers   float constant = codes · scale -> readers
    x -> Clip -> Q -> DQ -> readers  x -> readers, where the Clip ends at a grid that the codes' type carries

Everything else stays: sparse weights stay sparse, FP16 stays FP16. Limits: a DQ that is a graph output is left.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from gpusq_onnx.graph.edits import rewire, unlink
from gpusq_onnx.graph.model import Model, values_of
from gpusq_onnx.graph.naming import Names
from gpusq_onnx.graph.quantize_nodes import activation_format
from gpusq_onnx.quant.formats import dequantize
from gpusq_onnx.quant.scales import Scales


def remove_quantisation(model: Model) -> int:
    """Take the Q/DQ pairs out of the model, in place; how many DequantizeLinear nodes went."""
    outputs = {id(tensor) for tensor in model.graph.outputs}
    fresh = Names(model).fresh
    removed = 0
    for node in model.graph.nodes:
        if node.op != "DequantizeLinear" or id(node.outputs[0]) in outputs:
            continue
        codes = node.inputs[0]
        if isinstance(codes, gs.Constant):
            rewire(node.outputs[0].outputs, node.outputs[0], gs.Constant(fresh(f"{codes.name}_float"), _values(node)))
        elif codes.inputs and codes.inputs[0].op == "QuantizeLinear":
            rewire(node.outputs[0].outputs, node.outputs[0], _before(codes.inputs[0]))
        else:
            continue
        unlink(node)
        removed += 1
    for node in reversed(model.graph.nodes):
        if node.op in ("QuantizeLinear", "Clip") and not node.outputs[0].outputs and id(node.outputs[0]) not in outputs:
            unlink(node)
    model.graph.nodes[:] = [node for node in model.graph.nodes if node.outputs]
    return removed


def _before(quantize: gs.Node) -> gs.Tensor:
    """What a QuantizeLinear quantises, before the Clip that belongs to its format."""
    tensor = quantize.inputs[0]
    fmt = None if isinstance(tensor, gs.Constant) else activation_format(quantize)
    return tensor.inputs[0].inputs[0] if fmt is not None and fmt.carried else tensor


def _values(node: gs.Node) -> NDArray[np.floating]:
    """The float constant that a DequantizeLinear makes of its integer one, in the scale's type."""
    codes, scale = values_of(node.inputs[0]), values_of(node.inputs[1])
    axis, block = int(node.attrs.get("axis", 1)), int(node.attrs.get("block_size", 0))
    scales = Scales(np.asarray(scale, np.float32), axis if scale.ndim else None, block)
    return np.asarray(dequantize(codes, scales), scale.dtype)
