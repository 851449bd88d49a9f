"""Raise a model's opset to the lowest that explicit quantisation of any float type wants.

Target: opset 20, IR 10 (QuantizeLinear and DequantizeLinear of float16 and bfloat16 since 19, Gelu since 20;
onnxruntime and TensorRT both read it). Models from 20 to 25 keep their opset; above 25 TensorRT's parser stops, so they
are refused. What a model is written with in the end: `graph.label`.

Only operators whose meaning or signature changed on the way need a rewrite; they are the rows of `_RULES`, and those of
`graph.older` from 11 to 13. Everything else means the same at 20 as at 13 (onnx/docs/Changelog.md). Limits: below 11
(Resize, Slice, Pad and TopK changed there) the model is refused with the command that converts it.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, helper

from gpusq_onnx.errors import UnsupportedModelError
from gpusq_onnx.graph.fresh import Fresh, beside
from gpusq_onnx.graph.older import OLDER, raise_older, raise_softmax
from gpusq_onnx.graph.operators import STANDARD, Is, operators
from gpusq_onnx.graph.origin import subgraphs
from gpusq_onnx.graph.wording import node_label

OLDEST, LOWEST, NEWEST, IR = OLDER, 20, 25, 10

Rule = Callable[[NodeProto, GraphProto, Fresh], None]


def opset_of(model: ModelProto | FunctionProto) -> int:
    """The version of the default domain, 0 where the model or function names none."""
    return next((o.version for o in model.opset_import if o.domain in STANDARD), 0)


def raise_opset(model: ModelProto) -> bool:
    """Bring `model`, of no local functions, to opset 20 .. 25 and at least IR 10, in place, subgraphs included.

    Returns:
        Whether any node is another one now.

    Raises:
        UnsupportedModelError: the opset is below 11 or above 25.
    """
    found = opset_of(model)
    if not OLDEST <= found <= NEWEST:
        raise UnsupportedModelError(
            f"opset {found} is not supported",
            expected=f"{OLDEST} to {NEWEST}",
            found=str(found),
            hint=f"export with opset_version={LOWEST}, or convert: "
            f"onnx.version_converter.convert_version(model, {LOWEST})",
        )
    before = model.graph.SerializeToString(deterministic=True) if found < LOWEST else b""
    names = beside(model.graph)
    if found < 13:
        raise_older(model, names)
    for graph in (model.graph, *subgraphs(model.graph)):
        for node in list(graph.node):
            for op, since, rule in _RULES:
                if node.op_type == op and node.domain in STANDARD and found < since:
                    rule(node, graph, names)
    if found < LOWEST:
        for entry in model.opset_import:
            if entry.domain in STANDARD:
                entry.version = LOWEST
        if found < 13:
            raise_softmax(model, names)
    model.ir_version = max(model.ir_version, IR)
    return found < LOWEST and model.graph.SerializeToString(deterministic=True) != before


def _axes_to_input(node: NodeProto, graph: GraphProto, names: Fresh) -> None:
    """Opset 18: the reductions' `axes` became an input."""
    axes = next((a for a in node.attribute if a.name == "axes"), None)
    if axes is None:
        return
    name = names.fresh(f"{node.output[0]}_axes")
    graph.initializer.append(helper.make_tensor(name, onnx.TensorProto.INT64, [len(axes.ints)], list(axes.ints)))
    node.attribute.remove(axes)
    node.input.append(name)


def _split_count(node: NodeProto, graph: GraphProto, names: Fresh) -> None:
    """Opset 18: a Split without sizes must say how many equal parts it makes."""
    if len(node.input) < 2 or not node.input[1]:
        node.attribute.append(helper.make_attribute("num_outputs", len(node.output)))


def _grid_sample_mode(node: NodeProto, graph: GraphProto, names: Fresh) -> None:
    """Opset 20: the modes were renamed after their rank-free meaning."""
    for attribute in node.attribute:
        if attribute.name == "mode":
            attribute.s = {b"bilinear": b"linear", b"bicubic": b"cubic"}.get(attribute.s, attribute.s)


def _roi_align_mode(node: NodeProto, graph: GraphProto, names: Fresh) -> None:
    """Opset 16: the default became half-pixel centres; before, there was only the other convention."""
    node.attribute.append(helper.make_attribute("coordinate_transformation_mode", "output_half_pixel"))


def _refuse(since: int) -> Rule:
    def refuse(node: NodeProto, graph: GraphProto, names: Fresh) -> None:
        raise UnsupportedModelError(
            f"operator {node.op_type} changed its meaning with opset {since} and is not converted",
            where=node_label(node),
            hint=f"export with opset_version={since}",
        )

    return refuse


_RULES: tuple[tuple[str, int, Rule], ...] = (
    *((name, 18, _axes_to_input) for name in sorted(operators(Is.REDUCES) - {"ReduceSum"})),
    ("Split", 18, _split_count),
    ("RoiAlign", 16, _roi_align_mode),
    ("GridSample", 20, _grid_sample_mode),
    ("DFT", 20, _refuse(20)),
    ("GroupNormalization", 21, _refuse(21)),  # onnx's checker takes the older form at no opset
)
