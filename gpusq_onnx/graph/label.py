"""The opset that a graph is written with: the lowest that all its nodes mean the same at, from 20 on.

Why low: a default session of onnxruntime 1.28 to 1.32 gives a QuantizeLinear that it moves past a Reshape or Transpose
an `output_dtype` from opset 21 on, and then refuses it beside its zero point. It makes such Reshapes itself where a
MatMul of static shape is followed by a bias. TensorRT wants that zero point; the same graph labelled 20 loads. Where an
operator keeps the label above 20: `graph.rewrites.newer`.

How it is decided: by onnx's own schemas (`onnx.defs`), node by node, in subgraphs too. A node may
have another label where the operator exists there, takes the node's attributes, its number of inputs and outputs, and
their types, and where neither side is deprecated. From 20 to 25 operators gained types and attributes whose defaults
are the old behaviour and changed in no other way but for GroupNormalization, whose older form is deprecated; a test
fails when an onnx release says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TypeProto, defs, shape_inference

from gpusq_onnx.errors import UnsupportedModelError
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.operators import QDQ, STANDARD
from gpusq_onnx.graph.opset import IR, LOWEST, NEWEST, opset_of
from gpusq_onnx.graph.snapshot import Snapshot, take
from gpusq_onnx.graph.wording import node_label

_IR_OF = {20: IR, 21: IR, 22: IR}  # later opsets brought types that need a later IR

_VERSIONS = range(LOWEST, NEWEST + 1)

Types = Mapping[str, str]


class _Formal(NamedTuple):
    """One parameter of a schema: its types ("tensor(float)"), its type variable, empty where each item has its own."""

    types: frozenset[str]
    variable: str


def settle(model: Model, snapshot: Snapshot | None = None) -> None:
    """Give a quantised model the lowest label that its nodes allow; another one keeps its own.

    Args:
        snapshot: of the model as it is; None: it is taken.

    Raises:
        UnsupportedModelError: no opset up to 25 has all its operators; names the node.
    """
    if not any(node.op in QDQ for node in model.graph.nodes):
        return
    found = model.opset
    wanted = lowest((snapshot or take(model)).skeleton())
    if wanted == found:
        return
    model.graph.opset = wanted
    for entry in model.header.opset_import:
        if entry.domain in STANDARD:
            entry.version = wanted
    if wanted < found and wanted in _IR_OF:
        model.header.ir_version = _IR_OF[wanted]
    if wanted > found:
        newest = onnx.helper.OP_SET_ID_VERSION_MAP["ai.onnx", wanted]
        model.header.ir_version = max(model.header.ir_version, newest)


def lowest(model: ModelProto) -> int:
    """The lowest opset from 20 to 25 that the model may be labelled with; its large weights may be missing.

    Raises:
        UnsupportedModelError: there is none; names the node.
    """
    found = opset_of(model)
    if found > LOWEST:
        model = _inferred(model)
    nodes = [(node, _credible(node, types, found)) for node, types in _nodes(model.graph, {})]
    for version in _VERSIONS:
        if all(_takes(node, types, version, found) for node, types in nodes):
            return version
    odd = next((node for node, types in nodes if not _takes(node, types, found, found)), nodes[0][0])
    raise UnsupportedModelError(
        f"no opset has the operator {odd.op_type} beside the others of this graph",
        where=node_label(odd),
        expected=f"one of {LOWEST} to {NEWEST} that takes every node as it is",
        hint=f"export the model with opset_version={NEWEST - 2}",
    )


def _inferred(model: ModelProto) -> ModelProto:
    """With the types that inference finds; where it fails they stay unknown, which is no reason to lower a label."""
    try:
        return shape_inference.infer_shapes(model)
    except shape_inference.InferenceError:
        return model


def _nodes(graph: GraphProto, outer: Types) -> Iterator[tuple[NodeProto, Types]]:
    """Every node with the types of the tensors that it can see."""
    types = dict(outer)
    for value in (*graph.input, *graph.value_info, *graph.output):
        if text := _type(value.type):
            types[value.name] = text
    types.update((tensor.name, _tensor(tensor.data_type)) for tensor in graph.initializer)
    for node in graph.node:
        yield node, types
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner, types)


def _credible(node: NodeProto, types: Types, found: int) -> Types:
    """The types, or none where no opset takes the node with them: files may claim wrong ones, which runtimes ignore."""
    return types if any(_takes(node, types, version, found) for version in _VERSIONS) else {}


def _takes(node: NodeProto, types: Types, version: int, found: int) -> bool:
    """Whether a node of opset `found` means the same at `version`."""
    if node.domain not in STANDARD:
        return True
    asked, own = _schema(node, version), _schema(node, found)
    if asked is None:  # an operator that onnx does not know at all says nothing about labels
        return not any(_schema(node, other) for other in _VERSIONS)
    same = own is not None and own.since_version == asked.since_version
    if own is not None and not same and (asked.deprecated or own.deprecated):
        return False
    if any(attribute.name not in asked.attributes for attribute in node.attribute):
        return False
    if len(node.input) > asked.max_input or len(node.output) > asked.max_output:
        return False
    bound: dict[str, str] = {}
    for kind, names in (("inputs", node.input), ("outputs", node.output)):
        for index, name in enumerate(names):
            if not name:
                continue
            formal = _formal(asked, kind, index)
            actual = types.get(name)
            if actual is None:
                # of a node that was valid before, with nothing added since, every type is one that is taken
                if not same and own is not None and not _formal(own, kind, index).types <= formal.types:
                    return False
                continue
            one_type = not formal.variable or bound.setdefault(formal.variable, actual) == actual
            if actual not in formal.types or not one_type:
                return False
    return True


def _schema(node: NodeProto, version: int) -> defs.OpSchema | None:
    try:
        return defs.get_schema(node.op_type, version, "")
    except defs.SchemaError:
        return None


def _formal(schema: defs.OpSchema, kind: str, index: int) -> _Formal:
    formals = getattr(schema, kind)
    formal = formals[min(index, len(formals) - 1)]  # the last one may stand for many
    return _Formal(frozenset(formal.types), formal.type_str if formal.is_homogeneous else "")


def _type(kind: TypeProto) -> str | None:
    return _tensor(kind.tensor_type.elem_type) if kind.tensor_type.elem_type else None


def _tensor(data_type: int) -> str:
    return f"tensor({onnx.TensorProto.DataType.Name(data_type).lower()})"
