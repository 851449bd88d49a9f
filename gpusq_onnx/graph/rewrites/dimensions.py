"""Dimensions that a graph measures when it runs and that are known before: a Shape of data, or what is picked of one.

    Shape(x [7, batch, 128], start=2)      Gather(Shape(x), 2)      Slice(Shape(x), -1, 2**63 - 1)

Exporters pick one dimension of a Shape whose others are dynamic, and lay out weights by it. Limits: indices and bounds
are initializers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from gpusq_onnx.graph.model import values_of
from gpusq_onnx.graph.operators import is_standard
from gpusq_onnx.graph.shapes import Shapes


def known_dimensions(node: gs.Node, shapes: Shapes) -> NDArray[np.int64] | None:
    """What such a node yields; None for other nodes, and where a part of it is not known.

    Args:
        shapes: of all tensors, inferred with dynamic dimensions left open.
    """
    found = _measured(node, shapes)
    if found is None:
        found = _picked(node, shapes)
    if found is None or not all(isinstance(dimension, int) for dimension in found.reshape(-1)):
        return None
    return found.astype(np.int64)


def measured(node: gs.Node) -> gs.Node | None:
    """The Shape node whose output a Gather or Slice reads; None where there is none."""
    makers = node.inputs[0].inputs if node.op in ("Gather", "Slice") else []
    return makers[0] if len(makers) == 1 and makers[0].op == "Shape" and is_standard(makers[0]) else None


def _measured(node: gs.Node, shapes: Shapes) -> NDArray[Any] | None:
    """The dimensions that a Shape of data yields, as numbers, names or None."""
    if node.op != "Shape" or isinstance(node.inputs[0], gs.Constant):
        return None
    shape = shapes.get(node.inputs[0].name)
    return None if shape is None else np.asarray(shape[node.attrs.get("start") : node.attrs.get("end")], object)


def _picked(node: gs.Node, shapes: Shapes) -> NDArray[Any] | None:
    shape = measured(node)
    dimensions = None if shape is None else _measured(shape, shapes)
    operands = [tensor for tensor in node.inputs[1:] if not tensor.is_empty()]
    if dimensions is None or not all(isinstance(tensor, gs.Constant) for tensor in operands):
        return None
    values = [values_of(tensor) for tensor in operands]
    if node.op == "Gather":
        (indices,) = values
        inside = np.all((indices >= -len(dimensions)) & (indices < len(dimensions)))
        return np.asarray(dimensions[indices], object) if inside else None
    if len(values) < 2 or any(value.size != 1 for value in values):
        return None
    start, end, *others = (int(value.item()) for value in values)
    step = others[-1] if len(node.inputs) > 4 else 1
    return dimensions[start:end:step] if step else None
