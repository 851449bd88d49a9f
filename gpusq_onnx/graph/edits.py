"""The two edits that rewriting a graph is made of: give readers another tensor, and cut a node off.

A node that is cut off stays in the graph's list of nodes; who cuts it takes it out.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_graphsurgeon as gs


def rewire(readers: Iterable[gs.Node], old: gs.Tensor, new: gs.Tensor) -> None:
    """Let `readers`, each named once or more, read `new` wherever they read `old`."""
    for node in {id(node): node for node in readers}.values():
        for index, read in enumerate(node.inputs):
            if read is old:
                node.inputs[index] = new


def unlink(node: gs.Node) -> None:
    """Cut a node off from what it reads and makes."""
    node.inputs.clear()
    node.outputs.clear()
