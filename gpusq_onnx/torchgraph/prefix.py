"""How far a detector can be trained: the tensors before what selects.

A graph is cut before NonMaxSuppression, NonZero, RoiAlign, If, Loop and all else that cannot be converted, and before
a TopK after which no weight is left to train (the end of a detector: which boxes it takes differs from
teacher to student). A TopK with weights after it, as between encoder and decoder, is passed. The tail stays in ONNX,
untouched.

Source: docs/torchgraph.md, "Operators". Limit: a weight that only the tail reads is not trained.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpusq_onnx.errors import NothingMatched
from gpusq_onnx.graph.dataflow import Dataflow
from gpusq_onnx.graph.model import Model, Node
from gpusq_onnx.graph.operators import PRODUCTS
from gpusq_onnx.graph.shapes import infer_shapes, is_float
from gpusq_onnx.torchgraph.convert import ancestors, unconvertible
from gpusq_onnx.torchgraph.roles import Moving, roles_of


def trainable_prefix(model: Model) -> list[str]:
    """The float tensors up to which `model` can be trained, in graph order; its float outputs where nothing is cut.

    Ask for them with `convert(model, outputs=trainable_prefix(model))`.

    Raises:
        NothingMatched: nothing that is trained can be reached.
    """
    roles = roles_of(model)
    trained, flow, types = Moving(model, roles), Dataflow(model), infer_shapes(model)[1]
    tail = {id(node) for node in unconvertible(model)}
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
    before = {id(node): node for node in model.graph.nodes if id(node) not in tail}
    edge = [  # a reader that is not among them lies after the cut, or in a branch
        str(tensor.name)
        for node in before.values()
        for tensor in node.outputs
        if tensor.name in trained.learned
        and flow.is_data(tensor)
        and tensor.name in types
        and is_float(types[tensor.name])
        and (tensor.name in outputs or any(id(reader) not in before for reader in tensor.outputs))
    ]
    if not edge:
        first = next((node for node in model.graph.nodes if id(node) in tail), None)
        raise NothingMatched(
            "no trained tensor lies before what cannot be converted",
            where=first and f"node {first.name!r} ({first.op})",
            found=f"{len(tail)} of {len(model.graph.nodes)} nodes cannot be trained through, this one first",
            hint="export the network without it; operators that are trained: docs/torchgraph.md",
        )
    return edge


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
