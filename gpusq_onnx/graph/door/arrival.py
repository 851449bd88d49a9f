"""A model file as protobuf parsed it, before anything trusts it: what the rules of the `door` look at.

A `Level` is one list of nodes with names of its own: the graph, a subgraph, or a local function. Reading one makes no
assumption but that protobuf could parse the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

from gpusq_onnx.graph.operators import STANDARD
from gpusq_onnx.graph.wording import node_label


@dataclass(frozen=True)
class Level:
    """Nodes, and where they are, in words: "the graph", "a subgraph of node 'loop' (Loop)", "function 'f'"."""

    where: str
    body: GraphProto | FunctionProto

    @property
    def nodes(self) -> Sequence[NodeProto]:
        """The nodes, in the file's order."""
        return self.body.node  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Arrival:
    """A parsed model.

    Attributes:
        proto: the model, without the bytes of its large initializers.
        cut: how many bytes those have, by the initializer's name (see `graph.scan`).
        folder: where external data locations start from.
    """

    proto: ModelProto
    cut: Mapping[str, int]
    folder: Path

    @cached_property
    def graphs(self) -> list[Level]:
        """The graph and every subgraph, also those inside local functions."""
        found = [Level("the graph", self.proto.graph)]
        found += [inner for node in self.proto.graph.node for inner in _inside(node)]
        for function in self.proto.functions:
            found += [inner for node in function.node for inner in _inside(node)]
        return found

    @cached_property
    def levels(self) -> list[Level]:
        """All graphs, and the local functions."""
        return [*self.graphs, *(Level(f"function {f.name!r}", f) for f in self.proto.functions)]

    def nodes(self) -> Iterator[tuple[Level, NodeProto]]:
        """Every node with its level."""
        for level in self.levels:
            for node in level.nodes:
                yield level, node

    def opset(self, level: Level, domain: str) -> int | None:
        """The version of an operator domain at `level`; None where it is not imported."""
        imports = level.body.opset_import if isinstance(level.body, FunctionProto) else self.proto.opset_import
        names = STANDARD if domain in STANDARD else (domain,)
        return next((entry.version for entry in imports if entry.domain in names), None)

    @cached_property
    def tensors(self) -> list[tuple[str, TensorProto]]:
        """Every tensor that is stored in the model, and what it is, in words."""
        found = []
        for level in self.graphs:
            found += [(f"initializer {tensor.name!r}", tensor) for tensor in level.body.initializer]
            for sparse in level.body.sparse_initializer:
                what = f"sparse initializer {sparse.values.name!r}"
                found += [(what, sparse.values), (f"indices of the {what}", sparse.indices)]
        for _, node in self.nodes():
            for attribute in node.attribute:
                found += [(f"attribute {attribute.name!r} of {node_label(node)}", part) for part in _stored(attribute)]
        return found


Rule = Callable[[Arrival], Iterator[str]]
"""From a parsed model to its violations, one phrase each, which names the node or tensor."""


def bodies(node: NodeProto) -> Iterator[GraphProto]:
    """The subgraphs that a node carries itself."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH or attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _stored(attribute: AttributeProto) -> Iterator[TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    single = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
    for sparse in (*single, *attribute.sparse_tensors):
        yield from (sparse.values, sparse.indices)


def _inside(node: NodeProto) -> Iterator[Level]:
    for body in bodies(node):
        yield Level(f"a subgraph of {node_label(node)}", body)
        for inner in body.node:
            yield from _inside(inner)
