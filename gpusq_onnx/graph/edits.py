"""What rewriting a graph is made of: give readers another tensor, cut a node off, and name what is new.

A node that is cut off stays in the graph's list of nodes; who cuts it takes it out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_graphsurgeon as gs

from gpusq_onnx.graph.fresh import Fresh
from gpusq_onnx.graph.model import Model


def rewire(readers: Iterable[gs.Node], old: gs.Tensor, new: gs.Tensor) -> None:
    """Let `readers`, each named once or more, read `new` wherever they read `old`."""
    for node in {id(node): node for node in readers}.values():
        for index, read in enumerate(node.inputs):
            if read is old:
                node.inputs[index] = new


def position(nodes: Sequence[gs.Node], node: gs.Node) -> int:
    """The index of this very node: `==` of nodes compares what they say."""
    return next(index for index, other in enumerate(nodes) if other is node)


def unlink(node: gs.Node) -> None:
    """Cut a node off from what it reads and makes."""
    node.inputs.clear()
    node.outputs.clear()


class Names(Fresh):
    """The names taken in a model, and fresh ones beside them; subgraphs see outer names, so theirs count, too."""

    def __init__(self, model: Model) -> None:
        super().__init__(
            name
            for graph in (model.graph, *model.graph.subgraphs(recursive=True))
            for name in (*graph.tensors(), *(node.name for node in graph.nodes))
        )
