"""Transposes that crash onnxruntime before a Linear in FP16, moved after it: a matrix product does not mind.

A default session takes a Transpose that brings the first axis next to the last one, or to the end, into the MatMul that
reads it (FusedMatMul, `transBatchA`). Where the weight is an initializer [K, N] in FP16, the process then ends with
SIGSEGV while the model is loaded. Sequence-first attention (`torch.nn.MultiheadAttention`) is exported like that.

Source: onnxruntime 1.31, `matmul_transpose_fusion.cc`: it loads without MatmulTransposeFusion, or NchwcTransformer.
Limits: the main graph, not the bodies of If and Loop.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs
from onnx import TensorProto

from gpusq_onnx.graph.edits import Names, unlink
from gpusq_onnx.graph.fp16.policy import HALF
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.operators import constant_added
from gpusq_onnx.graph.trace import trace


def move_transposes(model: Model) -> list[str]:
    """Let Linears in FP16 read what such a Transpose reads, and transpose what they give, in place; their names."""
    if not any(map(_fused, model.graph.nodes)):
        return []  # nearly always, and a walk over all names costs more than this one
    fresh, nodes, changed = Names(model).fresh, list[gs.Node](), []
    bypassed: dict[int, gs.Node] = {}
    following: dict[int, gs.Node] = {}  # by id of a Linear's last node
    for node in model.graph.nodes:
        transpose = _fused(node)
        if transpose is not None:
            changed.append(str(node.name))
            bypassed[id(transpose)] = transpose
            source, order = transpose.inputs[0], list(transpose.attrs["perm"])
            if order[-1] != len(order) - 1:  # the summed axis must come last, and does in another order, too
                read, first = gs.Variable(fresh(f"{source.name}_swapped"), HALF), [order[1], order[0], *order[2:]]
                nodes.append(gs.Node("Transpose", fresh(f"{node.name}_swap"), {"perm": first}, [source], [read]))
                source, order = read, [1, 0, *range(2, len(order))]
            node.inputs[0], node.outputs[0].shape = source, None
            last = _with_bias(node)
            result, made = last.outputs[0], gs.Variable(fresh(f"{last.outputs[0].name}_in_order"), HALF)
            last.outputs[0] = made
            following[id(last)] = gs.Node("Transpose", fresh(f"{last.name}_order"), {"perm": order}, [made], [result])
        nodes.append(node)
        if id(node) in following:
            nodes.append(following[id(node)])
    for transpose in bypassed.values():
        if not transpose.outputs[0].outputs and transpose.outputs[0] not in model.graph.outputs:
            unlink(transpose)
    model.graph.nodes[:] = [node for node in nodes if node.outputs]
    return changed


def _fused(node: gs.Node) -> gs.Node | None:
    """The Transpose that onnxruntime would take into this Linear."""
    made = node.inputs[0].inputs if node.op == "MatMul" else []
    if len(made) != 1 or made[0].op != "Transpose" or not _is_matrix_in_half(node.inputs[1]):
        return None
    order = list(made[0].attrs.get("perm", ()))
    rank = len(order)
    inner, at_end = [*range(1, rank - 1), 0, rank - 1], [*range(1, rank), 0]
    return made[0] if rank > 2 and order in (inner, at_end) else None


def _is_matrix_in_half(operand: gs.Tensor) -> bool:
    found = trace(operand)
    if found is None or found.quantised or len(found.shape) != 2:
        return False
    cast = next((node.attrs["to"] for node in found.trail if node.op == "Cast"), None)
    return bool(found.weight.dtype == HALF if cast is None else cast == TensorProto.FLOAT16)


def _with_bias(node: gs.Node) -> gs.Node:
    """The Add of a bias [N] that alone reads a MatMul, or the MatMul."""
    found = constant_added(node)
    return found[0] if found is not None and len(found[0].inputs[found[1]].shape) == 1 else node
