"""Element types as a graph names them: of tensors, inputs and outputs, in attributes such as Cast's, in bodies, too."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from onnx import AttributeProto, GraphProto, TensorProto, TypeProto

TYPE_ATTRIBUTES = frozenset(
    ["to", "dtype", "output_dtype", "output_datatype", "stash_type", "softmax_precision", "precision"]
)
"""Attributes of standard operators that hold an element type."""


def names_type(graph: GraphProto, kind: int) -> bool:
    """Whether anything in a graph, or in a body of it, has the type `kind` (TensorProto.DataType)."""
    return any(True for _ in _places(graph, kind))


def rename_type(
    graph: GraphProto, old: int, new: int, convert: Callable[[TensorProto], TensorProto] | None = None
) -> None:
    """Put one type for another wherever a graph names it.

    Args:
        convert: makes a tensor of the new type; None: only its type is changed, for types of the same width.
    """
    for place in list(_places(graph, old)):
        if isinstance(place, TensorProto) and convert is not None:
            place.CopyFrom(convert(place))
        elif isinstance(place, TensorProto):
            place.data_type = new
        elif isinstance(place, AttributeProto):
            place.i = new
        else:
            place.elem_type = new


def _places(graph: GraphProto, kind: int) -> Iterator[TensorProto | AttributeProto | TypeProto.Tensor]:
    yield from (tensor for tensor in graph.initializer if tensor.data_type == kind)
    values = (*graph.input, *graph.output, *graph.value_info)
    yield from (value.type.tensor_type for value in values if value.type.tensor_type.elem_type == kind)
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        if attribute.type == AttributeProto.GRAPH:
            yield from _places(attribute.g, kind)
        elif attribute.type == AttributeProto.TENSOR and attribute.t.data_type == kind:
            yield attribute.t
        elif attribute.type == AttributeProto.INT and attribute.name in TYPE_ATTRIBUTES and attribute.i == kind:
            yield attribute
