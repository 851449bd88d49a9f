"""Attention with its score matrix written as [keys, queries], turned to [queries, keys].

    Softmax(K Q') over the axis before the last    Transpose(Softmax(Q K')) over the last
    V' P'                                          Transpose(P V)

Transposes that undo each other go. Between product and Softmax, factors, masks and casts are turned, too. Kernels of
fused attention, and all that asks for attention cores, know the second form alone.

Source: timm's `Attention2d`, einsum 'bhkq'. Limits: no Reshape between the scores and a Softmax over the axis before
the last.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_graphsurgeon as gs

from gpusq_onnx.graph.edits import rewire
from gpusq_onnx.graph.model import values_of
from gpusq_onnx.graph.operators import NORMS, Is, is_standard, operators
from gpusq_onnx.graph.rewrites.rule import Editor, Known, Unfit
from gpusq_onnx.graph.trace import trace

_BEFORE_SOFTMAX = operators(Is.AFFINE | Is.RETYPES) - NORMS | {"Identity", "Where", "Clip", "Max", "Min"}
_AFTER_SOFTMAX = operators(Is.RETYPES) | {"Identity", "Where", "IsNaN", "Mul"}
_TO_CONTEXT = _AFTER_SOFTMAX | {"Transpose", "Reshape"}
_MOST = 32  # nodes between a product and a Softmax


def is_turned(node: gs.Node) -> bool:
    """Whether a Softmax or a product of attention has the keys where queries are usual, or the other way round."""
    if node.op == "Softmax":
        x = node.inputs[0]
        swapped = _swap(x)
        if _is_before_last(node):
            return _leads(x, _is_scores, _BEFORE_SOFTMAX)
        return swapped is not None and _is_last(node) and _leads(swapped.inputs[0], _is_scores, _BEFORE_SOFTMAX)
    if node.op != "MatMul":
        return False
    left, right = node.inputs
    return _leads(right, _turns_weights, _TO_CONTEXT) and not _leads(left, _is_weights, _TO_CONTEXT)


def check_turned(node: gs.Node, known: Known) -> Known:
    """What is known of the shapes. Raises Unfit."""
    ranks = [len(known.shape(tensor)) for tensor in (*node.inputs, *node.outputs)]
    if min(ranks) < 2:
        raise Unfit("an operand has fewer than two axes")
    return known


def turn_softmax(node: gs.Node, known: Known, editor: Editor) -> gs.Tensor:
    """The Softmax over the last axis of the scores turned."""
    x = node.inputs[0]
    swapped = _swap(x) if _is_last(node) else None  # a Transpose that goes on to the product
    scores = x if swapped is None else swapped.inputs[0]
    made = editor.add("Softmax", _turned(scores, _is_scores, _BEFORE_SOFTMAX, known, editor), axis=-1)
    return made if swapped is not None else _back(node, made, known, editor)


def turn_product(node: gs.Node, known: Known, editor: Editor) -> gs.Tensor:
    """The product with its operands in the usual order, and a Transpose after it."""
    values, weights = node.inputs
    weights = _turned(weights, _is_weights, _AFTER_SOFTMAX, known, editor)
    return _back(node, editor.add("MatMul", weights, _turned_once(values, known, editor)), known, editor)


def _is_scores(node: gs.Node) -> bool:
    """Whether a node is a product that may be Q K': of no weight on the right."""
    return node.op == "MatMul" and trace(node.inputs[1]) is None


def _is_weights(node: gs.Node) -> bool:
    """Whether a node is the Softmax of scores."""
    return node.op == "Softmax" and _leads(node.inputs[0], _is_scores, _BEFORE_SOFTMAX | {"Transpose", "Reshape"})


def _turns_weights(node: gs.Node) -> bool:
    """Whether a node exchanges the axes of what comes from the Softmax of scores."""
    return _swap(node.outputs[0]) is not None and _leads(node.inputs[0], _is_weights, _TO_CONTEXT)


def _leads(tensor: gs.Tensor, wanted: Callable[[gs.Node], bool], through: frozenset[str]) -> bool:
    """Whether a node of this kind makes the tensor, with none but operators of `through` between."""
    queue, seen = [tensor], set[str]()
    while queue and len(seen) < _MOST:
        current = queue.pop()
        seen.add(current.name)
        for maker in current.inputs:
            if is_standard(maker) and wanted(maker):
                return True
            if maker.op in through or _swap(current) is not None:
                queue += [t for t in maker.inputs if t.name not in seen and not isinstance(t, gs.Constant)]
    return False


def _turned(
    tensor: gs.Tensor, wanted: Callable[[gs.Node], bool], through: frozenset[str], known: Known, editor: Editor
) -> gs.Tensor:
    """The tensor with its last two axes exchanged, made so from the node of this kind on where that leads to it."""
    maker = tensor.inputs[0] if tensor.inputs else None
    if maker is None or _swap(tensor) is not None or not _leads(tensor, wanted, through):
        return _turned_once(tensor, known, editor)
    if maker.op == "MatMul" and wanted(maker):
        left, right = (_turned_once(operand, known, editor) for operand in maker.inputs)
        return editor.add("MatMul", right, left, dtype=known.type(tensor))
    if maker.op not in through:
        return _turned_once(tensor, known, editor)
    operands = []
    for operand in maker.inputs:
        if operand.is_empty() or all(size == 1 for size in known.shape(operand)[-2:]):
            operands.append(operand)
        else:
            operands.append(_turned(operand, wanted, through, known, editor))
    return editor.add(maker.op, *operands, dtype=known.type(tensor), **maker.attrs)


def _turned_once(tensor: gs.Tensor, known: Known, editor: Editor) -> gs.Tensor:
    """The tensor with its last two axes exchanged by a Transpose, or what such a one is of."""
    swapped = _swap(tensor)
    if swapped is not None:
        return swapped.inputs[0]
    rank = len(known.shape(tensor))
    if rank > 1:
        return editor.transpose(tensor, _exchanged(rank))
    if not isinstance(tensor, gs.Constant):
        raise Unfit(f"{tensor.name!r} has one axis")
    return editor.layout_of(tensor, values_of(tensor)[:, None])


def _back(node: gs.Node, made: gs.Tensor, known: Known, editor: Editor) -> gs.Tensor:
    """What the node made, of what is made now; readers that exchange the axes themselves read `made` at once."""
    for reader in list(node.outputs[0].outputs):
        if reader.op == "Transpose" and _swap(reader.outputs[0]) is not None:
            rewire(list(reader.outputs[0].outputs), reader.outputs[0], made)
    return editor.transpose(made, _exchanged(len(known.shape(node.outputs[0]))))


def _swap(tensor: gs.Tensor) -> gs.Node | None:
    """The Transpose that makes a tensor, where it exchanges the last two axes alone."""
    maker = tensor.inputs[0] if tensor.inputs else None
    if maker is None or maker.op != "Transpose" or not is_standard(maker):
        return None
    order = list(maker.attrs.get("perm", ()))
    return maker if len(order) > 1 and order == _exchanged(len(order)) else None


def _exchanged(rank: int) -> list[int]:
    """The order of axes that exchanges the last two."""
    return [*range(rank - 2), rank - 1, rank - 2]


def _is_before_last(softmax: gs.Node) -> bool:
    return _from_end(softmax) == -2


def _is_last(softmax: gs.Node) -> bool:
    return _from_end(softmax) == -1


def _from_end(softmax: gs.Node) -> int:
    """The axis of a Softmax, counted from the end; 0 where that is not known."""
    axis = int(softmax.attrs.get("axis", -1))
    rank = _rank(softmax.inputs[0]) if axis >= 0 else 0
    return axis - rank if axis < rank or axis < 0 else 0


def _rank(tensor: gs.Tensor) -> int:
    """How many axes scores have, from stored shapes or the orders of Transposes before them; 0 where none says it."""
    found, queue, seen = 0, [tensor], set[str]()
    while queue and len(seen) < _MOST:
        current = queue.pop()
        seen.add(current.name)
        maker = current.inputs[0] if current.inputs else None
        if current.shape is not None:
            found = max(found, len(current.shape))
        elif maker is not None and maker.op == "Transpose":
            found = max(found, len(maker.attrs.get("perm", ())))
        elif maker is not None and maker.op in _BEFORE_SOFTMAX | {"MatMul"}:
            queue += [t for t in maker.inputs if t.name not in seen]
    return found
