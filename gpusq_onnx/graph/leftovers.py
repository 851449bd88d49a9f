"""Products that are no site: of data with a constant, all of them, each with the reason; and of data with data.

A site is a product whose constant a view lays out as w[out, k] (`graph.sites`). What is left of the operators that
multiply with constants is found here by exclusion, so that a plan has a row for every product, and none is missed
because no walk knows its form:

    Einsum         that is no MatMul, or that the pass `canonical` did not see
    MatMul         with a vector, or with one matrix for each position, head or expert
    queries        of attention, where they are learned
    a constant     that only a run computes, since folding leaves it alone
    the other way  the constant is the input, and the weight is data
    subgraphs      products inside the branches of an If, or in a Loop
    other weights  GRU, LSTM, DeformConv, and operators of other domains that read a constant matrix

Products of two tensors of data are quantised in attention cores alone; the others are found by exclusion, too.

Limits: inside subgraphs, constants are initializers and Constant nodes, of the subgraph or from around it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import onnx_graphsurgeon as gs

from gpusq_onnx.graph.attention import Attention
from gpusq_onnx.graph.dataflow import Dataflow, has_subgraph
from gpusq_onnx.graph.operators import LINEAR, PRODUCTS, WEIGHTS, factors, is_standard
from gpusq_onnx.graph.qdq.weight_only import NBITS
from gpusq_onnx.graph.sites import Site
from gpusq_onnx.graph.trace import trace
from gpusq_onnx.graph.wording import node_label

_OTHERS = frozenset("GRU LSTM RNN DeformConv MatMulInteger ConvInteger QLinearMatMul QLinearConv".split())
_LEAST = 16  # the sides from which a constant that an unknown operator reads is taken for a weight

_LEARNED = "learned queries, Q of attention: no weight of a layer"
_NO_CORE = "two tensors of data, in no attention core (product, Softmax over the last axis, product): it stays in float"


@dataclass(frozen=True)
class Leftover:
    """One product that is no site.

    Attributes:
        tensor: the constant's name; the product's result where the constant is computed, or there is none.
        node: the product.
        shape: of the constant; empty where it is computed.
        reason: why it is no site, as plans print it.
        learned: the constant is the queries of an attention core.
    """

    tensor: str
    node: gs.Node
    shape: tuple[int, ...]
    reason: str
    learned: bool = False


def find_leftovers(flow: Dataflow, sites: Sequence[Site], attentions: Sequence[Attention]) -> list[Leftover]:
    """Every product of data with a constant that is no site, in graph order."""
    learned = {id(attention.scores) for attention in attentions if attention.learned}
    known = {id(reader) for site in sites for reader in site.readers}
    found: list[Leftover] = []
    for node in flow.nodes:
        if has_subgraph(node):
            found += _inside(node, _stays(node))
        elif id(node) in learned:
            found.append(replace(_leftover(node, node.inputs[0], _LEARNED), learned=True))
        elif id(node) not in known and flow.data_inputs(node):
            found += _of(node, flow)
    return found


def find_products(flow: Dataflow, attentions: Sequence[Attention]) -> list[Leftover]:
    """Every matrix product of two tensors of data that is in no attention core, in graph order."""
    known = {id(node) for attention in attentions for node in (attention.scores, attention.context)}
    found: list[Leftover] = []
    for node in flow.nodes:
        if has_subgraph(node):
            bodies = node.subgraphs(recursive=True)
            inside = (inner for body in bodies for inner in body.nodes if _multiplies(inner))
            found += [_product(each, _stays(node)) for each in inside if not any(map(_is_stored, factors(each)))]
        elif _multiplies(node) and id(node) not in known and sum(map(flow.is_data, factors(node))) > 1:
            found.append(_product(node, _NO_CORE))
    return found


def _stays(node: gs.Node) -> str:
    """Why what is inside an If, a Loop or a Scan is left as it is."""
    return f"inside {node_label(node)}: branches and loops stay as they are"


def _multiplies(node: gs.Node) -> bool:
    """Whether a node is a product of matrices."""
    return is_standard(node) and (node.op in LINEAR or node.op == "Einsum")


def _product(node: gs.Node, reason: str) -> Leftover:
    return Leftover(str(node.outputs[0].name), node, (), reason)


def _of(node: gs.Node, flow: Dataflow) -> Iterator[Leftover]:
    standard = is_standard(node)
    if standard and node.op in PRODUCTS:
        for place, tensor in enumerate(factors(node)):
            if not tensor.is_empty() and not flow.is_data(tensor):
                yield _leftover(node, tensor, _why(node, place, tensor))
                return
    elif (not standard and node.op != NBITS) or node.op in _OTHERS:
        matrices = [t for t in node.inputs if isinstance(t, gs.Constant) and _is_matrix(t)]
        yield from (_leftover(node, t, f"{node.op}: no operator that is pruned or quantised here") for t in matrices)


def _inside(node: gs.Node, reason: str) -> Iterator[Leftover]:
    graphs = [value for value in node.attrs.values() if isinstance(value, gs.Graph)]
    for inner in (inner for graph in graphs for inner in graph.nodes):
        if has_subgraph(inner):
            yield from _inside(inner, reason)
        elif inner.op in PRODUCTS:
            constants = [t for t in inner.inputs[:2] if _is_stored(t)]
            if len(constants) == 1:
                yield _leftover(inner, constants[0], reason)


def _is_stored(tensor: gs.Tensor) -> bool:
    made_here = bool(tensor.inputs) and tensor.inputs[0].op == "Constant"
    return isinstance(tensor, gs.Constant) or made_here or trace(tensor) is not None


def _is_matrix(tensor: gs.Constant) -> bool:
    return len(tensor.shape) >= 2 and min(tensor.shape[-2:]) >= _LEAST


def _leftover(node: gs.Node, tensor: gs.Tensor, reason: str) -> Leftover:
    found = trace(tensor)
    name = node.outputs[0].name if found is None else found.weight.name
    return Leftover(str(name), node, () if found is None else found.shape, reason)


def _why(node: gs.Node, place: int, tensor: gs.Tensor) -> str:
    found = trace(tensor)
    if node.op == "Einsum":
        return "an Einsum that is no product with one matrix"
    if found is None:
        return f"its constant is computed by {tensor.inputs[0].op} when the model runs"
    if place not in WEIGHTS[node.op]:
        return "the constant is its input, and its weight is data"
    if len(found.shape) < 2:
        return "it multiplies with a vector"
    several = math.prod(found.shape[:-2])
    return f"one matrix for each of {several} positions, heads or experts: no Linear"
