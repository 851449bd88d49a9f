"""The forms that later passes treat, made of those that they cannot: each rewrite computes the same, up to rounding.

    rows   Einsum -> MatMul · Attention -> its products · If with a constant condition -> its branch ·
           Gemm with factors -> Gemm without · attention with keys by queries -> with queries by keys ·
           onnxruntime's own operators -> those of ONNX that they fuse (`RULES`)
    folds  what constants decide, where a product with data or an If's condition reads it, or a Resize with antialias
           makes it

Folding is what the pass `fold` does, for these cases only. A branch that moved may decide the next condition, so all
of it is repeated until nothing changes.

Source: docs/torchgraph.md "How weights look in exports". Limits: those of each row, which says its reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import onnx_graphsurgeon as gs

from gpusq_onnx.errors import UnsupportedModelError
from gpusq_onnx.graph.dataflow import Dataflow
from gpusq_onnx.graph.fp16.names import free_names
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.operators import PRODUCTS, QDQ, factors, is_standard
from gpusq_onnx.graph.rewrites import runtime_operators
from gpusq_onnx.graph.rewrites.branches import inline_branch, taken_branch
from gpusq_onnx.graph.rewrites.einsum import check_einsum, rewrite_einsum
from gpusq_onnx.graph.rewrites.folding import MIB, Fold, fold, foldable
from gpusq_onnx.graph.rewrites.fused_attention import check_attention, rewrite_attention
from gpusq_onnx.graph.rewrites.gemm import check_gemm, is_scaled, rewrite_gemm
from gpusq_onnx.graph.rewrites.rule import Known, Layouts, Rule, Unfit, replace
from gpusq_onnx.graph.rewrites.turned import check_turned, is_turned, turn_product, turn_softmax
from gpusq_onnx.graph.shapes import Dim, infer_shapes
from gpusq_onnx.graph.sites import module_path
from gpusq_onnx.graph.trace import trace

_USUAL = "of attention with queries by keys, whose operands can be INT8"

RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "Einsum": Rule("Einsum", "a MatMul, which can be pruned and quantised", check_einsum, rewrite_einsum),
        "Attention": Rule(
            "Attention", "two MatMuls and a Softmax, whose operands can be INT8", check_attention, rewrite_attention
        ),
        "Gemm": Rule("Gemm", "a Linear: its constants take its alpha and its beta", check_gemm, rewrite_gemm),
        "Softmax": Rule("Softmax", f"a Softmax {_USUAL}", check_turned, turn_softmax),
        "MatMul": Rule("MatMul", f"a product {_USUAL}", check_turned, turn_product),
        **runtime_operators.RULES,
    }
)


@dataclass(frozen=True)
class NodeChange:
    """What becomes of one node.

    Attributes:
        tensor, module, op, shape: its output, its module path, its operator and the output's shape.
        reason: what it becomes; where `kept`, why it stays.
    """

    tensor: str
    module: str
    op: str
    shape: tuple[Dim, ...]
    reason: str
    kept: bool = False


def has_candidates(model: Model, flow: Dataflow, operators: Sequence[str]) -> bool:
    """Whether any node may be rewritten; costs one walk and no shapes."""
    return any(True for _ in _candidates(model, flow, operators))


def has_runtime_operators(model: Model) -> bool:
    """Whether onnxruntime has put operators of its own there that are made those of ONNX."""
    return any(_row(node) in runtime_operators.RULES for node in model.graph.nodes)


def spelled_out(model: Model) -> Model:
    """The model, in which onnxruntime's own operators are made those of ONNX: what reads it knows no others."""
    if has_runtime_operators(model):
        canonicalise(model, tuple(runtime_operators.RULES))
    return model


def countable(model: Model) -> Model:
    """A copy in the forms that passes treat, in which every product shows its weight; the model itself where it is one.

    Attention stays as it is: its products have no weights.
    """
    rows = tuple(row for row in RULES if row != "Attention")
    flow = Dataflow(model)
    if not has_candidates(model, flow, rows) or any(node.op in QDQ for node in flow.nodes):
        return model
    copy = model.clone()
    canonicalise(copy, rows)
    return copy


def canonicalise(model: Model, operators: Sequence[str] = tuple(RULES)) -> list[NodeChange]:
    """Rewrite the graph until no rule fits any more; what was done, then what was left and why.

    Args:
        model: is edited.
        operators: the rows of `RULES` that are applied.

    Raises:
        UnsupportedModelError: the graph's shapes contradict each other.
    """
    if has_runtime_operators(model):
        free_names(model)
    done: list[NodeChange] = []
    refused: dict[str, str] = {}
    layouts = Layouts()
    while True:
        flow = Dataflow(model)
        if not has_candidates(model, flow, operators):
            return done
        shapes, types = infer_shapes(model)
        known = Known(shapes, types, flow)
        kept: list[NodeChange] = []
        before = len(done)
        for node in list(_candidates(model, flow, operators)):
            if not node.outputs:
                continue  # another's rewrite took it out
            if node.op == "If":
                _inline(model, node, known, done, kept)
            elif _row(node) in operators:
                _rewrite(model, node, known, layouts, done, kept)
        if len(done) == before:
            done += _fold(model, flow, refused)
        if len(done) == before:
            return done + kept + [NodeChange(name, "", "constant", (), why, True) for name, why in refused.items()]


def _candidates(model: Model, flow: Dataflow, operators: Sequence[str]) -> Iterator[gs.Node]:
    for node in model.graph.nodes:
        if _row(node) in operators or (
            is_standard(node)
            and (node.op == "If" or _reads_computed_weight(node, flow) or _smooths_constant(node, flow))
        ):
            yield node


def _row(node: gs.Node) -> str:
    """The key of `RULES` that a node has; a Gemm without factors has none, nor has what is turned as is usual."""
    if (node.op == "Gemm" and not is_scaled(node)) or (node.op in ("Softmax", "MatMul") and not is_turned(node)):
        return ""
    return str(node.op) if is_standard(node) else f"{node.domain}.{node.op}"


def _reads_computed_weight(node: gs.Node, flow: Dataflow) -> bool:
    """Whether a product of data has an operand that constants decide and that is no stored weight after views."""
    if node.op not in PRODUCTS or not flow.data_inputs(node):
        return False
    return any(
        not isinstance(tensor, gs.Constant) and tensor.inputs and not flow.is_data(tensor) and trace(tensor) is None
        for tensor in factors(node)
    )


def _smooths_constant(node: gs.Node, flow: Dataflow) -> bool:
    return node.op == "Resize" and bool(node.attrs.get("antialias", 0)) and not flow.data_inputs(node)


def _inline(model: Model, node: gs.Node, known: Known, done: list[NodeChange], kept: list[NodeChange]) -> None:
    found = _change(node, known, "the branch that its constant condition takes")
    try:
        taken_branch(node)
        inline_branch(model, node)
        done.append(found)
    except Unfit as why:
        kept.append(_refusal(found, why))


def _rewrite(
    model: Model, node: gs.Node, known: Known, layouts: Layouts, done: list[NodeChange], kept: list[NodeChange]
) -> None:
    rule = RULES[_row(node)]
    found = _change(node, known, rule.does)
    try:
        replace(model, node, rule, rule.check(node, known), known.type(node.inputs[0]), layouts)
        done.append(found)
    except Unfit as why:
        kept.append(_refusal(found, why))


def _fold(model: Model, flow: Dataflow, refused: dict[str, str]) -> list[NodeChange]:
    """Fold what the candidates read: together, or one after the other where onnxruntime cannot compute all of it."""
    wanted = [found for found in foldable(model, MIB) if found.name not in refused and _wanted(found, flow)]
    refused.update({found.name: found.refusal for found in wanted if found.refusal})
    changes = {found.name: _folded(found) for found in wanted if not found.refusal}
    try:
        fold(model, list(changes))
        return list(changes.values())
    except UnsupportedModelError:
        return [change for name, change in changes.items() if _fold_one(model, name, refused)]


def _fold_one(model: Model, name: str, refused: dict[str, str]) -> bool:
    if isinstance(model.graph.tensors()[name], gs.Constant):
        return True
    try:
        fold(model, [name])
    except UnsupportedModelError as error:
        refused[name] = f"onnxruntime cannot compute it: {error.details['found']}"
    return name not in refused


def _wanted(found: Fold, flow: Dataflow) -> bool:
    if any(_smooths_constant(node, flow) for node in found.made_by):
        return True
    (tensor,) = (out for out in found.node.outputs if out.name == found.name)
    return any(node.op == "If" or _reads_computed_weight(node, flow) for node in tensor.outputs)


def _folded(found: Fold) -> NodeChange:
    reason = f"one initializer: computed from constants by {found.nodes} node{'s' if found.nodes > 1 else ''}"
    return NodeChange(found.name, module_path(found.node), str(found.node.op), found.shape, reason)


def _change(node: gs.Node, known: Known, reason: str) -> NodeChange:
    output = node.outputs[0]
    return NodeChange(str(output.name), module_path(node), str(node.op), known.shapes.get(output.name, ()), reason)


def _refusal(found: NodeChange, why: Any) -> NodeChange:
    return NodeChange(found.tensor, found.module, found.op, found.shape, str(why), True)
