"""Biases that onnxruntime would lose in FP16, written so that it leaves them alone.

Of a Conv or a Gemm between Q/DQ pairs, and of a MatMul with an Add, which becomes one, a default session makes the bias
INT32 codes: it divides it by the scale of the data times that of the weight, in the scales' own type. In FP16 that is
infinite above 65504 steps, and the codes are anything. So there a Conv's bias is added after it, and the others' are
rows [1, N]: the same sums.

Source: onnxruntime 1.31, `weight_bias_quantization.cc`: it takes biases of one axis, and outputs that nothing but one
QuantizeLinear reads, a Relu or Clip between.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from gpusq_onnx.graph.edits import Names
from gpusq_onnx.graph.fp16.policy import HALF
from gpusq_onnx.graph.model import Model, values_of
from gpusq_onnx.graph.operators import constant_added
from gpusq_onnx.graph.rewrites.bias_rows import add_as_row
from gpusq_onnx.graph.shapes import Shapes, rank_of


def protect_biases(model: Model, shapes: Shapes) -> list[str]:
    """Rewrite the biases that are infinite in steps of FP16 scales, in place; the names of their nodes."""
    fresh, nodes, changed = Names(model).fresh, list[gs.Node](), []
    follow: dict[int, list[gs.Node]] = {}
    for node in model.graph.nodes:
        nodes += [node, *follow.get(id(node), [])]
        place = _bias_of(node)
        if place is None or not _is_lost(node, *place):
            continue
        changed.append(str(node.name))
        adds, index = place
        bias = adds.inputs[index]
        if node.op in ("Gemm", "MatMul"):
            follow[id(adds)] = add_as_row(adds, bias, rank_of(node.outputs[0], shapes), fresh)
            continue
        made, result = gs.Variable(fresh(f"{node.outputs[0].name}_without_bias"), HALF), node.outputs[0]
        after = gs.Constant(fresh(f"{bias.name}_after"), values_of(bias).reshape(-1, *[1] * _kernel_axes(node)))
        del node.inputs[index]
        node.outputs[0] = made
        nodes.append(gs.Node("Add", fresh(f"{node.name}_bias"), {}, [made, after], [result]))
    model.graph.nodes[:] = nodes
    return changed


def _bias_of(node: gs.Node) -> tuple[gs.Node, int] | None:
    """The node that adds a bias, and which input that is: a Conv or Gemm itself, or the only reader of a MatMul."""
    if node.op in ("Conv", "ConvTranspose", "Gemm"):
        return (node, 2) if len(node.inputs) > 2 else None
    return constant_added(node) if node.op == "MatMul" else None


def _is_lost(node: gs.Node, adds: gs.Node, index: int) -> bool:
    bias = adds.inputs[index]
    data, weight = _scale_of(node.inputs[0]), _scale_of(node.inputs[1])
    if not isinstance(bias, gs.Constant) or bias.dtype != HALF or len(bias.shape) != 1:
        return False
    if data is None or data.size != 1 or weight is None or not _goes_to_a_pair(adds):
        return False
    if weight.size not in (1, bias.shape[0]) or (node.op.startswith("Conv") and not _kernel_axes(node)):
        return False
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        return not np.isfinite(values_of(bias) / (data.reshape(()) * weight.reshape(-1))).all()


def _kernel_axes(node: gs.Node) -> int:
    """How many axes a convolution slides along; 0 where the graph does not say."""
    for name in ("kernel_shape", "strides", "dilations"):
        if node.attrs.get(name):
            return len(node.attrs[name])
    shape = node.inputs[1].inputs[0].inputs[0].shape
    return len(shape) - 2 if shape is not None else 0


def _scale_of(tensor: gs.Tensor) -> NDArray[Any] | None:
    """The FP16 scale of the DequantizeLinear that makes a tensor."""
    maker = tensor.inputs[0] if tensor.inputs else None
    scale = maker.inputs[1] if maker is not None and maker.op == "DequantizeLinear" else None
    return values_of(scale) if isinstance(scale, gs.Constant) and scale.dtype == HALF else None


def _goes_to_a_pair(node: gs.Node) -> bool:
    while True:
        readers = node.outputs[0].outputs
        if len(readers) != 1 or readers[0].op not in ("QuantizeLinear", "Relu", "Clip"):
            return False
        if readers[0].op == "QuantizeLinear":
            return True
        (node,) = readers
