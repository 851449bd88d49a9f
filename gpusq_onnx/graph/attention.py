"""Attention of a graph, in one node or taken apart by an exporter: matched once, for all who ask.

    Q, K' -> MatMul -> * factors -> + mask -> Softmax -> [pairs] -> MatMul(., V)

    core     a Softmax that one product of data leads to and one product of data follows, whatever lies between: masks,
             casts, Q/DQ pairs (`find_cores`). Q may be constant (learned queries). It has a place in the structure,
             pairs on its operands, a cost, a form
    exact    nothing but what is drawn above, each step the only reader of the one before (`follow`): it can be computed
             as one function. torch.fx has the same pattern with other nodes, so the walk sees a graph through `Nodes`

Where there is no match, both give the reason. Scores are [queries, keys]: `graph.rewrites.turned` makes them so.
Limits: convolutional attention, talking heads (a product between Softmax and values) are none; a mask is one sum,
after all factors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import onnx_graphsurgeon as gs

from gpusq_onnx.graph.dataflow import Dataflow
from gpusq_onnx.graph.operators import Is, is_standard, operators
from gpusq_onnx.graph.shapes import Shapes
from gpusq_onnx.graph.sites import Site

# From the scores to the Softmax's reader: masks and casts.
_AFTER_SOFTMAX = operators(Is.RETYPES | Is.QUANTISES | Is.DEQUANTISES) | {
    *("Identity", "Dropout", "Where", "IsNaN", "Mul", "Reshape")
}

# And further on, to the division by their sum: a blend with other probabilities (ConViT).
_NORMALISES = _AFTER_SOFTMAX | {"Add", "ReduceSum", "Unsqueeze", "Div"}

# What makes true and false makes masks, whatever product it is of (Mask2Former), and no scores.
_COMPARES = frozenset("Equal Greater GreaterOrEqual Less LessOrEqual And Or Xor Not".split())


@dataclass(eq=False)
class Attention:
    """One attention core: scores = MatMul(q, k'), weights = Softmax(scores), context = MatMul(weights, v).

    The second MatMul reads the weights as its left operand; `tokens` is the longer side of the score matrix, None where
    it is not known; `learned` says that q is constant; `proj` is the site that the context goes to. A fused Attention
    node is both `scores` and `context`.
    """

    scores: gs.Node
    context: gs.Node
    tokens: int | None
    learned: bool = False
    proj: Site | None = None

    @property
    def fused(self) -> bool:
        """Whether this is one Attention operator (opset 23), whose inner products no Q/DQ can reach."""
        return self.scores is self.context


def find_cores(flow: Dataflow, shapes: Shapes, owner: dict[int, Site]) -> tuple[list[Attention], dict[str, str]]:
    """The attention cores in graph order; by the name of its output, why another Softmax of data is part of none.

    Args:
        owner: the sites by the ids of the nodes that read their weights, which are no products of attention.
    """
    found, refused = list[Attention](), dict[str, str]()
    for node in flow.nodes:
        if node.op == "Attention" and is_standard(node):
            queries = node.inputs[0]
            shape = shapes.get(queries.name, ())
            tokens = shape[-2] if len(shape) > 1 and isinstance(shape[-2], int) else None
            found.append(Attention(node, node, tokens, learned=not flow.is_data(queries)))
        if node.op == "Softmax" and flow.is_data(node.inputs[0]):
            core = _core(node, flow, shapes, owner)
            if isinstance(core, Attention):
                found.append(core)
            else:
                refused[str(node.outputs[0].name)] = core
    return found, refused


def _core(softmax: gs.Node, flow: Dataflow, shapes: Shapes, owner: dict[int, Site]) -> Attention | str:
    """The core around a Softmax, or what is not as in one."""

    def is_product(node: gs.Node) -> bool:
        """A MatMul of two tensors of data: relative positions multiply with a table, and are no scores."""
        return node.op == "MatMul" and id(node) not in owner and len(flow.data_inputs(node)) == 2

    def products_of(tensor: gs.Tensor) -> list[gs.Node]:
        return flow.origins(tensor, lambda node: id(node) in owner or node.op == "MatMul" or node.op in _COMPARES)

    def has_learned_queries(node: gs.Node) -> bool:
        """A MatMul of a constant on the left with keys, which are no scores: that mixes heads."""
        if node.op != "MatMul" or flow.is_data(node.inputs[0]):
            return False
        return not any(map(is_product, products_of(node.inputs[1])))

    products = products_of(softmax.inputs[0])
    scores = [node for node in products if is_product(node)]
    scores = scores or [node for node in products if has_learned_queries(node)]
    if len(scores) != 1:
        return f"{len(scores)} products of two tensors of data lead to the Softmax, not one"
    reached = flow.reach(softmax.outputs, _AFTER_SOFTMAX)
    readers = [node for tensor in reached.values() for node in tensor.outputs if is_product(node)]
    if not readers:
        blended = flow.reach(softmax.outputs, _NORMALISES).values()
        reached = flow.reach(list(filter(_is_normalised, blended)), _AFTER_SOFTMAX)
        readers = [node for tensor in reached.values() for node in tensor.outputs if is_product(node)]
    if len(readers) != 1:
        return f"{len(readers)} products of two tensors of data read the Softmax, not one"
    (context,) = readers
    if context.inputs[0].name not in reached:
        return "the product that reads the Softmax has it on the right"
    dims = shapes.get(scores[0].outputs[0].name, ())[-2:]
    known = [dim for dim in dims if isinstance(dim, int)]
    tokens = max(known) if len(known) == 2 else None
    return Attention(scores[0], context, tokens, learned=not flow.is_data(scores[0].inputs[0]))


def _is_normalised(tensor: gs.Tensor) -> bool:
    """Whether a tensor was divided by its sums: what is made of probabilities are such again, at most 1."""
    maker = tensor.inputs[0] if tensor.inputs else None
    if maker is None or maker.op != "Div":
        return False
    summed = maker.inputs[1].inputs[0] if maker.inputs[1].inputs else None
    if summed is not None and summed.op == "Unsqueeze":
        summed = summed.inputs[0].inputs[0] if summed.inputs[0].inputs else None
    return summed is not None and summed.op == "ReduceSum" and summed.inputs[0] is maker.inputs[0]


Kind = Literal["product", "sum", "softmax", "quantiser", ""]


@dataclass(frozen=True)
class Factor:
    """A node that multiplies or divides by one number: it, its data operand and the number that multiplies."""

    node: Any
    data: Any
    value: float


class Chains(Protocol):
    """A graph as `factors_after` sees it; nodes and operands are the graph's own."""

    def factor(self, node: Any) -> Factor | None:
        """The factor that a node is; None: it is none."""

    def reader(self, node: Any) -> Any | None:
        """The only reader of a node's result; None: there are several, or none."""


class Nodes(Chains, Protocol):
    """A graph as `follow` sees it."""

    def kind(self, node: Any) -> Kind:
        """What a node is: a product of two tensors, their sum, a Softmax over the last axis, a pair's rounding."""

    def operands(self, node: Any) -> tuple[Any, Any]:
        """The first two operands of a node that has a kind."""

    def made_by(self, operand: Any) -> Any | None:
        """The node that makes an operand; None: none does."""


@dataclass(frozen=True)
class Exact:
    """Attention and nothing else: context = round(softmax(product(q, k') * scale + mask)) v.

    Attributes:
        scores, softmax, context: nodes.
        factors: between the first product and the mask.
        mask: an operand; None: nothing is added.
        quantisers: between Softmax and the second product.
    """

    scores: Any
    factors: tuple[Factor, ...]
    mask: Any | None
    softmax: Any
    quantisers: tuple[Any, ...]
    context: Any

    @property
    def scale(self) -> float:
        """The product of all factors."""
        value = 1.0
        for factor in self.factors:
            value *= factor.value
        return value


def factors_after(nodes: Chains, node: Any) -> Iterator[Factor]:
    """The factors that follow a node, each the only reader of the one before."""
    while (reader := nodes.reader(node)) is not None and (factor := nodes.factor(reader)) is not None:
        yield factor
        node = reader


def follow(nodes: Nodes, scores: Any) -> Exact | str:
    """The attention that a product begins, or what is not as in one."""
    if nodes.kind(scores) != "product":
        return "it is no product of two tensors"
    factors = tuple(factors_after(nodes, scores))
    last = factors[-1].node if factors else scores
    after, mask = nodes.reader(last), None
    if after is not None and nodes.kind(after) == "sum":
        left, right = nodes.operands(after)
        first = nodes.made_by(left) is last
        mask = right if first else left
        if not first and _begins(nodes, left):
            return "the mask is a product itself: that one is taken for the scores"
        after = nodes.reader(after)
    if after is None or nodes.kind(after) != "softmax":
        return "no Softmax over the last axis is the only reader of the scores"
    softmax, quantisers = after, list[Any]()
    last, after = softmax, nodes.reader(softmax)
    while after is not None and nodes.kind(after) == "quantiser":
        quantisers.append(after)
        last, after = after, nodes.reader(after)
    if after is None or nodes.kind(after) != "product":
        return "no product is the only reader of the weights"
    if nodes.made_by(nodes.operands(after)[0]) is not last:
        return "the weights are not the left operand"
    return Exact(scores, factors, mask, softmax, tuple(quantisers), after)


def _begins(nodes: Nodes, operand: Any) -> bool:
    """Whether an operand is a product after factors, with one reader each."""
    node = nodes.made_by(operand)
    while node is not None and nodes.reader(node) is not None:
        if nodes.kind(node) == "product":
            return True
        factor = nodes.factor(node)
        node = None if factor is None else nodes.made_by(factor.data)
    return False
