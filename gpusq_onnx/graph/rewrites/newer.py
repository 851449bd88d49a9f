"""A quantised graph that must stay at opset 21 or later, in forms that onnxruntime's default session loads.

What goes wrong there: see `graph.label`: after a DequantizeLinear and a Reshape, Transpose or the like, of the
graph or made by a fusion, onnxruntime 1.28 to 1.32 puts a QuantizeLinear that it refuses. So there are none:

    1. MatMul + Add of a bias [N] is made a Gemm between Reshapes; with the bias as [1, N] it stays as it is
    2. Q -> DQ -> Reshape -> Transpose -> readers becomes Q -> Reshape -> Transpose -> DQ -> readers: codes instead of
       floats go through the layout, each number the same; TensorRT moves a DQ down like that itself

Limits: scales of one number (those of activations); layout whose output is the graph's stays.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_graphsurgeon as gs

from gpusq_onnx.graph.edits import Names, rewire, unlink
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.opset import LOWEST
from gpusq_onnx.graph.rewrites.bias_rows import add_as_row
from gpusq_onnx.graph.shapes import Shapes, rank_of

# What onnxruntime moves pairs over, and no more of what only moves values.
_LAYOUT = frozenset("Reshape Transpose Squeeze Unsqueeze Slice Flatten".split())


def settle_newer(model: Model, shapes: Shapes) -> int:
    """Rewrite both cases, in place; the number of biases and DequantizeLinears that changed."""
    if model.opset <= LOWEST:
        return 0
    return _keep_biases_apart(model, shapes) + _Sinking(model).run()


def _keep_biases_apart(model: Model, shapes: Shapes) -> int:
    fresh, changed, nodes = Names(model).fresh, 0, list[gs.Node]()
    for node in model.graph.nodes:
        nodes.append(node)
        found = _biased(node)
        if found is None or not any(made.op == "DequantizeLinear" for made in found[0].inputs[0].inputs):
            continue
        nodes += add_as_row(node, found[1], rank_of(found[0].outputs[0], shapes), fresh)
        changed += 1
    model.graph.nodes[:] = nodes
    return changed


def _biased(node: gs.Node) -> tuple[gs.Node, gs.Constant] | None:
    """The MatMul and the bias [N] that an Add joins."""
    if node.op == "Add":
        for one, other in (node.inputs, node.inputs[::-1]):
            made = one.inputs[0] if one.inputs else None
            if made is not None and made.op == "MatMul" and isinstance(other, gs.Constant) and len(other.shape) == 1:
                return made, other
    return None


class _Sinking:
    """Case 2: every DequantizeLinear of one scale goes down through the layout operators that read it."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._fresh = Names(model).fresh
        self._outputs = {id(tensor) for tensor in model.graph.outputs}
        self._after: dict[int, list[gs.Node]] = {}

    def run(self) -> int:
        """The DequantizeLinears that moved."""
        moved, nodes = 0, []
        for node in list(self._model.graph.nodes):
            if node.op == "DequantizeLinear":
                moved += self._sink(node)
        for node in self._model.graph.nodes:
            nodes += [node, *self._after.get(id(node), [])]
        self._model.graph.nodes[:] = [node for node in nodes if node.outputs]
        return moved

    def _sink(self, node: gs.Node) -> bool:
        codes, scale = node.inputs[:2]
        if isinstance(codes, gs.Constant) or not isinstance(scale, gs.Constant) or math.prod(scale.shape) != 1:
            return False
        moved = self._through(node, codes, node.outputs[0])
        if moved and not node.outputs[0].outputs and id(node.outputs[0]) not in self._outputs:
            unlink(node)
        return moved

    def _through(self, node: gs.Node, codes: gs.Tensor, floats: gs.Tensor) -> bool:
        """Let the layout operators that read `floats` read `codes`, and what reads them a DQ of its own."""
        moved = False
        for reader in list(floats.outputs):
            data = reader.inputs[0] is floats and reader.op in _LAYOUT
            if not data or id(reader.outputs[0]) in self._outputs:
                continue
            rewire([reader], floats, codes)
            (made,) = reader.outputs
            carried = gs.Variable(self._fresh(f"{made.name}_quantized"), codes.dtype or np.int8, made.shape)
            reader.outputs[0] = carried
            self._through(node, carried, made)
            if made.outputs:
                name = self._fresh(f"{made.name}_DequantizeLinear")
                back = gs.Node(node.op, name, dict(node.attrs), [carried, *node.inputs[1:]], [made])
                self._after.setdefault(id(reader), []).append(back)
            moved = True
        return moved
