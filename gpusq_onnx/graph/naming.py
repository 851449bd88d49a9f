"""Names that no tensor or node of a graph has yet."""

from __future__ import annotations

from gpusq_onnx.graph.model import Model


class Names:
    """The names taken in a model, and fresh ones beside them; subgraphs see outer names, so theirs count, too."""

    def __init__(self, model: Model) -> None:
        self._taken: set[str] = set()
        for graph in (model.graph, *model.graph.subgraphs(recursive=True)):
            self._taken.update(graph.tensors())
            self._taken.update(node.name for node in graph.nodes)

    def fresh(self, name: str) -> str:
        """`name`, or `name_2`, `name_3`, ... where it is taken; taken from now on."""
        candidate, count = name, 1
        while candidate in self._taken:
            count += 1
            candidate = f"{name}_{count}"
        self._taken.add(candidate)
        return candidate
