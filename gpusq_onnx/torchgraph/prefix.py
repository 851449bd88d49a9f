"""How far a detector can be trained: the tensors before what selects.

A graph is cut before NonMaxSuppression, NonZero, RoiAlign, If, Loop and all else that cannot be converted, and before
a TopK after which no weight is left to train (the end of a detector: which boxes it takes differs from
teacher to student). A TopK with weights after it, as between encoder and decoder, is passed. The tail stays in ONNX,
untouched. Outputs without elements are left out: there is nothing to compare.

Source: docs/torchgraph.md, "Operators". Limit: a weight that only the tail reads is not trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gpusq_onnx.errors import NothingMatched
from gpusq_onnx.graph.dataflow import Dataflow
from gpusq_onnx.graph.model import Model, Node
from gpusq_onnx.graph.operators import PRODUCTS
from gpusq_onnx.graph.shapes import infer_shapes, is_float
from gpusq_onnx.graph.sites import Site
from gpusq_onnx.graph.wording import node_label
from gpusq_onnx.torchgraph.convert import ancestors, unconvertible
from gpusq_onnx.torchgraph.roles import Moving, returned, roles_of


def trainable_prefix(model: Model) -> list[str]:
    """The float tensors up to which `model` can be trained, in graph order; its float outputs where nothing is cut.

    Ask for them with `convert(model, outputs=trainable_prefix(model))`.

    Raises:
        NothingMatched: nothing that is trained can be reached.
    """
    return _cut(model).edge


@dataclass(frozen=True)
class Reach:
    """What training reaches in a graph.

    Attributes:
        untrained: why training leaves weights as they are, by the name of the site; without those that it changes.
        computed: names of the tensors that the trainable prefix is computed from.
    """

    untrained: dict[str, str]
    computed: frozenset[str]


def reach(model: Model, sites: Iterable[Site]) -> Reach:
    """What training up to the trainable prefix reaches of these sites.

    Raises:
        NothingMatched: as `trainable_prefix`.
    """
    cut, roles, fixed = _cut(model), roles_of(model), returned(model)
    trained = {id(node): node for node in ancestors(model, cut.edge)}
    found = {}
    for site in sites:
        if site.weight.name in fixed:
            found[site.name] = "an output of the graph is made of it alone: changing it would change that, too"
        elif site.weight.name not in roles:
            found[site.name] = "no data is multiplied with it as it is stored"
        elif not any(id(reader) in trained for reader in site.weight.outputs):
            found[site.name] = _barrier(model, site, cut.tail)
    return Reach(found, frozenset(str(tensor.name) for node in trained.values() for tensor in node.outputs))


@dataclass(frozen=True)
class _Cut:
    """The tensors up to which a graph is trained, and the nodes after them by id."""

    edge: list[str]
    tail: set[int]


def _cut(model: Model) -> _Cut:
    roles = roles_of(model)
    trained, flow, types = Moving(model, roles), Dataflow(model), infer_shapes(model)[1]
    nodes, incomparable = unconvertible(model)
    tail = {id(node) for node in nodes}
    weighing = {
        id(node)
        for node in model.graph.nodes
        if node.op in PRODUCTS and any(t.name in trained.moving and not flow.is_data(t) for t in node.inputs)
    }
    for node in model.graph.nodes:
        if node.op == "TopK" and id(node) not in tail and not _leads_to(node, weighing, tail):
            tail.add(id(node))
        if any(producer_id in tail for t in node.inputs for producer_id in map(id, t.inputs)):
            tail.add(id(node))
    outputs = {tensor.name for tensor in model.graph.outputs}
    learned = trained.learned - incomparable
    before = {id(node): node for node in model.graph.nodes if id(node) not in tail}
    edge = [  # a reader that is not among them lies after the cut, or in a branch
        str(tensor.name)
        for node in before.values()
        for tensor in node.outputs
        if tensor.name in learned
        and flow.is_data(tensor)
        and tensor.name in types
        and is_float(types[tensor.name])
        and (tensor.name in outputs or any(id(reader) not in before for reader in tensor.outputs))
    ]
    if not edge:
        first = next((node for node in model.graph.nodes if id(node) in tail), None)
        if first is None:
            raise NothingMatched("no float output with elements is made with a weight that can be trained")
        raise NothingMatched(
            "no trained tensor lies before what cannot be converted",
            where=node_label(first),
            found=f"{len(tail)} of {len(model.graph.nodes)} nodes cannot be converted, or come after one",
            hint="export the network without it, or from there on; operators that are trained: docs/torchgraph.md",
        )
    return _Cut(edge, tail)


def _barrier(model: Model, site: Site, tail: set[int]) -> str:
    """Why nothing made with a weight is trained on: the first node of `tail` up to its reader, where there is one."""
    made = [str(tensor.name) for tensor in site.readers[0].outputs]
    first = next((node for node in ancestors(model, made) if id(node) in tail), None)
    if first is None:
        return "it makes no float output that could be compared"
    place = "read by" if first is site.readers[0] else "it comes after"
    return f"{place} {node_label(first)}, which is not trained through"


def selections(model: Model, names: Sequence[str]) -> list[tuple[str, str]]:
    """(scores, indices) of each TopK before the named tensors that selects, by name, in graph order.

    A TopK whose indices nobody reads only sorts values.
    """
    return [
        (str(node.inputs[0].name), str(node.outputs[1].name))
        for node in ancestors(model, names)
        if node.op == "TopK" and len(node.outputs) > 1 and node.outputs[1].outputs
    ]


def _leads_to(start: Node, wanted: set[int], barred: set[int]) -> bool:
    """Whether a node of `wanted` reads what `start` makes, through nodes that are not barred."""
    queue, seen = [start], set[int]()
    while queue:
        for tensor in queue.pop().outputs:
            for node in tensor.outputs:
                if id(node) in wanted:
                    return True
                if id(node) not in seen and id(node) not in barred:
                    seen.add(id(node))
                    queue.append(node)
    return False
