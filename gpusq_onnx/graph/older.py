"""Opsets 11 and 12 as 13: what changed its form or its meaning between, node by node.

    Squeeze, Unsqueeze, ReduceSum   their `axes` became an input
    Split                           so did its `split`
    Softmax, LogSoftmax, Hardmax    were over all axes from `axis` on (1 where it is not given), and are over one
    Dropout                         its `ratio` became an input, which inference does not read
    Resize                          an empty `roi` or `scales` stood for none; one coordinate mode was withdrawn

Softmax over several axes becomes Flatten, Softmax over the last, Reshape; exporters write that of the last axis, which
stays one node where the rank is known. Source: onnx/docs/Changelog.md. Everything else means at 13 what it meant at 11.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import onnx
from onnx import GraphProto, ModelProto, NodeProto, helper, shape_inference

from gpusq_onnx.errors import UnsupportedModelError
from gpusq_onnx.graph.fresh import Fresh
from gpusq_onnx.graph.wording import node_label

OLDER = 11
_WITHDRAWN = b"tf_half_pixel_for_nn"


class Older:
    """Rewrites nodes of one graph: each method gives the node at opset 13, itself or several in its place.

    `ranks`: of tensors, where they are known. `names`: of the whole model, for what is new.
    """

    def __init__(self, graph: GraphProto, ranks: Mapping[str, int], names: Fresh) -> None:
        self._graph, self._ranks, self._fresh = graph, ranks, names.fresh
        self._empty = {t.name for t in graph.initializer if list(t.dims) == [0]}
        self._empty |= {node.output[0] for node in graph.node if node.op_type == "Constant" and _is_empty(node)}

    def to_input(self, node: NodeProto, name: str) -> Iterable[NodeProto]:
        """An attribute that is a list of integers becomes the next input."""
        numbers = _attribute(node, name)
        if numbers is not None:
            node.attribute.remove(numbers)
            stored = self._fresh(f"{node.output[0]}_{name}")
            kind = onnx.TensorProto.INT64
            self._graph.initializer.append(helper.make_tensor(stored, kind, [len(numbers.ints)], list(numbers.ints)))
            node.input.append(stored)
        return (node,)

    def soft(self, node: NodeProto) -> Iterable[NodeProto]:
        """Softmax and its like, over the last axis."""
        given = _attribute(node, "axis")
        axis = 1 if given is None else given.i
        if given is not None:
            node.attribute.remove(given)
        node.attribute.append(helper.make_attribute("axis", -1))
        if axis in (-1, self._ranks.get(node.input[0], 0) - 1):
            return (node,)
        source, output = node.input[0], node.output[0]
        flat, made, shape = (self._fresh(f"{output}_{what}") for what in ("flat", "soft", "shape"))
        node.input[0], node.output[0] = flat, made
        return (
            helper.make_node("Flatten", [source], [flat], axis=axis),
            node,
            helper.make_node("Shape", [source], [shape]),
            helper.make_node("Reshape", [made, shape], [output]),
        )

    def dropout(self, node: NodeProto) -> Iterable[NodeProto]:
        """Dropout without its ratio."""
        ratio = _attribute(node, "ratio")
        if ratio is not None:
            node.attribute.remove(ratio)
        return (node,)

    def resize(self, node: NodeProto) -> Iterable[NodeProto]:
        """Resize without inputs that are empty. Raises UnsupportedModelError for the mode that was withdrawn."""
        mode = _attribute(node, "coordinate_transformation_mode")
        if mode is not None and mode.s == _WITHDRAWN:
            raise UnsupportedModelError(
                f"Resize has no coordinate mode {_WITHDRAWN.decode()!r} from opset 13 on",
                where=node_label(node),
                hint="export with opset_version=13 or later",
            )
        for place, name in enumerate(node.input):
            if place and name in self._empty:
                node.input[place] = ""
        return (node,)


Rule = Callable[[Older, NodeProto], Iterable[NodeProto]]
_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("Squeeze", "Unsqueeze", "ReduceSum"), lambda older, node: older.to_input(node, "axes")),
    "Split": lambda older, node: older.to_input(node, "split"),
    "Dropout": Older.dropout,
    "Resize": Older.resize,
}
_SOFT: Mapping[str, Rule] = dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), Older.soft)


def raise_older(model: ModelProto, names: Fresh) -> None:
    """Bring the nodes of `model` but Softmax from opset 11 or 12 to 13, in place, subgraphs included.

    Raises:
        UnsupportedModelError: a Resize of a coordinate mode that opset 13 does not have.
    """
    _rewrite(model.graph, _RULES, {}, names)


def raise_softmax(model: ModelProto, names: Fresh) -> None:
    """The same of Softmax, once all else is of opset 20, where inference finds ranks that older opsets hide from it."""
    _rewrite(model.graph, _SOFT, _ranks(model), names)


def _rewrite(graph: GraphProto, rules: Mapping[str, Rule], ranks: Mapping[str, int], names: Fresh) -> None:
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _rewrite(attribute.g, rules, ranks, names)
    older, nodes = Older(graph, ranks, names), GraphProto()
    for node in graph.node:
        nodes.node.extend(rules[node.op_type](older, node) if node.op_type in rules else [node])
    del graph.node[:]
    graph.node.extend(nodes.node)


def _ranks(model: ModelProto) -> dict[str, int]:
    try:
        found = shape_inference.infer_shapes(model, data_prop=True).graph
    except shape_inference.InferenceError:
        return {}
    values = [value for value in (*found.value_info, *found.input) if value.type.tensor_type.HasField("shape")]
    return {value.name: len(value.type.tensor_type.shape.dim) for value in values}


def _attribute(node: NodeProto, name: str) -> onnx.AttributeProto | None:
    return next((attribute for attribute in node.attribute if attribute.name == name), None)


def _is_empty(node: NodeProto) -> bool:
    value = _attribute(node, "value")
    return value is not None and list(value.t.dims) == [0]
