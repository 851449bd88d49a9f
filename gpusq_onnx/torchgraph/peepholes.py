"""What exporters took apart is put together again, where nobody reads what lies between.

    linear      matmul(x, W) + b                                  F.linear(x, W', b)
    gelu        x * (1 + erf(x / sqrt 2)) * 0.5                   F.gelu(x)
    attention   softmax(q k' * s + mask) v                        functions.attention(q, k, v, mask, s)
    parts       slices that tile one axis, one by one             torch.split or torch.unbind: one backward for all
    roll        cat(x[n:], x[:n])                                 torch.roll(x, -n)

A pattern is left alone where a Q/DQ pair, a tap or another reader is inside: each inner node has one reader. LayerNorms
in parts are none of these: they are found in the ONNX graph, which is converted with each as one (`graph.norms`).
The walk along attention is that of `graph.attention`.

Source: docs/torchgraph.md, fact 5. Limit: the fused functions round otherwise than the pieces, within a few units in
the last place.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import fx
from torch.nn import functional

from gpusq_onnx.graph.attention import follow
from gpusq_onnx.torchgraph import functions
from gpusq_onnx.torchgraph.builder import BUFFER, SHAPES
from gpusq_onnx.torchgraph.fx_nodes import FxNodes, Node, calls, only_reader, scaled

_NODES = FxNodes()


def simplify(graph: fx.Graph) -> None:
    """Apply every rule to every node, in place."""
    for rule in (_parts, _roll, _linear, _gelu, _attention):
        for node in list(graph.nodes):
            if node.users:
                rule(graph, node)


def _linear(graph: fx.Graph, node: Node) -> None:
    if not calls(node, torch.matmul) or not all(isinstance(arg, fx.Node) for arg in node.args):
        return
    x, weight = node.args
    if _rank(weight) != 2 or _rank(x) < 2:
        return
    add = only_reader(node)
    bias = _other(add, node) if add is not None and calls(add, operator.add) else None
    if add is None or bias is None or _rank(bias) != 1 or _shape(bias)[0] != _shape(weight)[1]:
        return
    swapped = calls(weight, torch.permute) or calls(weight, torch.t)
    with graph.inserting_before(add):
        transposed = weight.args[0] if swapped else _made(graph, torch.t, (weight,), _swapped(weight))
        _replace(graph, add, functional.linear, (x, transposed, bias))


def _gelu(graph: fx.Graph, node: Node) -> None:
    if not calls(node, torch.erf) or len(node.users) != 1:
        return
    x, scale = scaled(node.args[0])
    plus = only_reader(node)
    if plus is None or not calls(plus, operator.add) or _other(plus, node, scalar=True) != 1:
        return
    if not isinstance(x, fx.Node) or not math.isclose(scale, math.sqrt(0.5), rel_tol=1e-5):
        return
    end, factor, others = plus, 1.0, list[Node]()
    while len(others) + (factor != 1.0) < 2:
        above = only_reader(end)
        if above is None or not calls(above, operator.mul):
            return
        scalar = _other(above, end, scalar=True)
        if scalar is None:
            base, inner = scaled(_other(above, end))
            others.append(base)
            factor *= inner
        else:
            factor *= scalar
        end = above
    if others == [x] and math.isclose(factor, 0.5):
        _replace(graph, end, functional.gelu, (x,))


def _learned_of_data(mask: Node) -> bool:
    """Whether trained tensors and data both made a mask (SAM's relative positions): fused attention under vmap has no
    gradient for it."""
    seen, queue, data, trained = set[fx.Node](), [mask], False, False
    while queue:
        node = queue.pop()
        if node not in seen:
            seen.add(node)
            queue.extend(node.all_input_nodes)
            data |= node.op == "placeholder"
            trained |= node.op == "get_attr" and not str(node.target).startswith(BUFFER)
    return data and trained


def _attention(graph: fx.Graph, node: Node) -> None:
    found = follow(_NODES, node)
    if isinstance(found, str):
        return
    context, mask = found.context, found.mask
    fits = _shape(found.softmax) == _shape(node)
    if mask is not None and (not fits or _rank(mask) > _rank(node) or _learned_of_data(mask)):
        return
    (q, q_scale), (kt, k_scale), v = scaled(node.args[0]), scaled(node.args[1]), context.args[1]
    if not _rank(q) == _rank(kt) == _rank(v) == 4:
        return
    with graph.inserting_before(context):
        if calls(kt, torch.permute) and tuple(kt.args[1]) == (0, 1, 3, 2):
            k = kt.args[0]
            k, inner = scaled(k) if len(kt.users) == 1 else (k, 1.0)
        else:
            k, inner = graph.call_function(torch.transpose, (kt, -2, -1)), 1.0
        scale = q_scale * k_scale * inner * found.scale
        fused = graph.call_function(functions.attention, (q, k, v, mask, False, scale))
    fused.meta[SHAPES] = context.meta[SHAPES]
    _substitute(graph, context, fused)


def _parts(graph: fx.Graph, node: Node) -> None:
    if SHAPES not in node.meta or len(node.users) < 2:
        return
    for axis in range(_rank(node)):
        length = _shape(node)[axis]
        if any(shape[axis] != length for shape in node.meta[SHAPES]):
            continue
        cuts = {user: cut for user in node.users if (cut := _cut(user, axis)) is not None}
        order = sorted(cuts, key=lambda user: cuts[user][0])
        edges = [0, *(cuts[user][1] or length for user in order)]
        if len(cuts) < 2 or edges[-1] != length or [cuts[user][0] for user in order] != edges[:-1]:
            continue
        with graph.inserting_after(node):
            if all(calls(user, torch.select) for user in order):
                whole = graph.call_function(torch.unbind, (node, axis))
            elif not any(calls(user, torch.select) for user in order):
                sizes = [stop - start for start, stop in pairwise(edges)]
                whole = graph.call_function(torch.split, (node, sizes, axis))
            else:
                return
        for index, user in enumerate(order):
            with graph.inserting_before(user):
                part = graph.call_function(operator.getitem, (whole, index))
            part.meta[SHAPES] = user.meta[SHAPES]
            _substitute(graph, user, part)
        return


def _cut(node: Node, axis: int) -> tuple[int, int | None] | None:
    """Start and stop (None: the end) of a slice or select along `axis` and no other."""
    if calls(node, torch.select) and node.args[1] == axis:
        return int(node.args[2]), int(node.args[2]) + 1
    index = node.args[1] if calls(node, operator.getitem) else None
    if not isinstance(index, tuple) or len(index) != axis + 1 or not isinstance(index[-1], slice):
        return None
    cut = index[-1]
    plain = all(isinstance(n, (int, type(None))) for n in (cut.start, cut.stop, cut.step)) and cut.step is None
    return (cut.start or 0, cut.stop) if plain else None


def _roll(graph: fx.Graph, node: Node) -> None:
    if not calls(node, torch.cat) or len(node.args[0]) != 2:
        return
    (first, second), axis = node.args
    if not all(calls(part, operator.getitem) and calls(part.args[0], torch.split) for part in (first, second)):
        return
    split = first.args[0]
    if second.args[0] is not split or split.args[2] != axis or (first.args[1], second.args[1]) != (1, 0):
        return
    if len(split.args[1]) != 2:
        return
    x, shifts, axes = split.args[0], (-split.args[1][0],), (axis,)
    if calls(x, torch.roll) and len(x.users) == 1:
        x, shifts, axes = x.args[0], (*x.args[1], *shifts), (*x.args[2], *axes)
    _replace(graph, node, torch.roll, (x, shifts, axes))


def _other(node: Node, operand: Node, scalar: bool = False) -> Any:
    """The operand beside `operand`: a node, or with `scalar` a number; None where it is not of that kind."""
    left, right = node.args
    found = right if left is operand else left
    return found if isinstance(found, fx.Node) != scalar else None


def _rank(node: Any) -> int:
    return len(_shape(node)) if isinstance(node, fx.Node) and SHAPES in node.meta else -1


def _shape(node: Node) -> Sequence[int]:
    shape: Sequence[int] = node.meta[SHAPES][-1]
    return shape


def _swapped(node: Node) -> list[Sequence[int]]:
    return [tuple(shape)[::-1] for shape in node.meta[SHAPES]]


def _made(graph: fx.Graph, function: Callable[..., Any], args: tuple[Any, ...], shapes: Any) -> Node:
    node = graph.call_function(function, args)
    node.meta[SHAPES] = shapes
    return node


def _replace(graph: fx.Graph, node: Node, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Put `function(*args)` where `node` was."""
    with graph.inserting_before(node):
        _substitute(graph, node, _made(graph, function, args, node.meta[SHAPES]))


def _substitute(graph: fx.Graph, node: Node, made: Node) -> None:
    """Put `made` where `node` was, and erase what nobody reads any more."""
    node.replace_all_uses_with(made)
    queue = [node]
    while queue:
        dead = queue.pop()
        if not dead.users and dead.op not in ("placeholder", "output") and not dead._erased:
            inputs = dead.all_input_nodes
            graph.erase_node(dead)
            queue.extend(inputs)
