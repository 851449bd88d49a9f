"""Names for what is new in a model: of all levels, since a subgraph sees outer names.

A name that is new in a branch alone hides an outer tensor that the branch reads; one that is an input's makes that
input's default value of an initializer.
"""

from __future__ import annotations

from collections.abc import Iterable

from onnx import GraphProto

from gpusq_onnx.graph.origin import subgraphs


class Fresh:
    """Names that are taken, and new ones."""

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = set(taken)

    def fresh(self, name: str) -> str:
        """`name`, or `name_2`, `name_3`, ... where it is taken; taken from now on."""
        candidate, count = name, 1
        while candidate in self._taken:
            count += 1
            candidate = f"{name}_{count}"
        self._taken.add(candidate)
        return candidate


def beside(graph: GraphProto) -> Fresh:
    """Names that no tensor and no node of a parsed graph has, nor of its subgraphs."""
    taken: set[str] = set()
    for level in (graph, *subgraphs(graph)):
        taken.update(value.name for value in (*level.input, *level.output, *level.value_info, *level.initializer))
        taken.update(sparse.values.name for sparse in level.sparse_initializer)
        for node in level.node:
            taken.update((node.name, *node.input, *node.output))
    return Fresh(taken)
