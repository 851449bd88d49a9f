"""Which operands of products of data get pairs, as plan rows, and the pairs of those that no image reaches.

    attention cores    Q, K, softmax and V, where there are few tokens
    learned queries    Q of a core that is constant: its scale comes from its values, as a weight's
    other products     none: a row says so

Limits: learned queries that only a run computes stay in float, and so do the keys that they are multiplied with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np

from gpusq_onnx.graph.attention import Attention
from gpusq_onnx.graph.leftovers import find_products
from gpusq_onnx.graph.model import Model, Node, values_of
from gpusq_onnx.graph.qdq.pairs import MAX_TOKENS, QdqWriter
from gpusq_onnx.graph.structure import Structure
from gpusq_onnx.graph.trace import trace
from gpusq_onnx.pipeline.base import SKIP, PlanRow, leftover_row
from gpusq_onnx.pipeline.details import LearnedPair, Operand, OperandPair, QdqPair, rows_with
from gpusq_onnx.quant.clipping import weight_scales
from gpusq_onnx.quant.formats import Format, clamp_scale


class Choice(Protocol):
    """The options that decide (`calibration.quantising_pass.QuantiseOptions`)."""

    attention: bool
    skip_attention: list[int]
    softmax: Literal["observed", "fixed"]
    clip: Literal["mse", "absmax"]
    only: list[str]


def attention_rows(structure: Structure, options: Choice, fmt: Format) -> list[PlanRow]:
    """A row for each operand of each attention core, and one for each product of data in none."""
    rows = [
        row
        for number, attention in enumerate(structure.attentions)
        for row in _core_rows(number, attention, structure, options, fmt)
    ]
    others = find_products(structure.flow, structure.attentions)
    return rows + [leftover_row(left, structure.shapes.get(left.tensor, ())) for left in others]


def write_learned(
    model: Model, structure: Structure, plan: Sequence[PlanRow], clip: Literal["mse", "absmax"]
) -> dict[str, float]:
    """Put the planned pairs on learned queries; their scales by tensor."""
    scales: dict[str, float] = {}
    writer = QdqWriter(model, structure.types, structure.shapes)
    for row, pair in rows_with(plan, LearnedPair):
        scores = structure.attentions[pair.attention].scores
        queries = scores.inputs[0]
        found = trace(queries)
        assert found is not None, row.tensor
        values = found.view.read(values_of(found.weight)).reshape(1, -1).astype(np.float32)
        (scale,) = weight_scales(values, pair.numbers, method=clip)
        scales[row.tensor] = float(clamp_scale(scale, structure.types.get(row.tensor, np.float32)))
        writer.activation(queries, scales[row.tensor], [scores], pair.numbers)
    writer.finish()
    return scales


def _core_rows(number: int, attention: Attention, structure: Structure, options: Choice, fmt: Format) -> list[PlanRow]:
    score, context = attention.scores, attention.context
    refused = _refusal(number, attention, options)
    rows = []
    operands: tuple[tuple[Node, int, Operand], ...]
    operands = (score, 0, "Q"), (score, 1, "K"), (context, 0, "softmax"), (context, 1, "V")
    for node, index, operand in operands:
        tensor, reason = node.inputs[index], refused
        if not reason and attention.learned and node is score and (trace(score.inputs[0]) is None or fmt.scales):
            reason = "learned queries that a run computes: no scale can be had of them"
        fixed = operand == "softmax" and options.softmax == "fixed"
        detail: QdqPair = OperandPair(format=fmt.name, attention=number, operand=operand, fixed=fixed)
        ends = f" at scale 1/{fmt.largest:g}" if fixed else ""
        if attention.learned and operand == "Q":
            detail, ends = LearnedPair(format=fmt.name, attention=number), f": learned, {options.clip} clip"
        why = reason or f"operand {operand} of an attention product{ends}"
        shape = structure.shapes.get(tensor.name, ())
        decision = SKIP if reason else "quantise activation"
        path = attention.proj.path.rpartition(".")[0] if attention.proj is not None else ""
        rows.append(PlanRow(tensor.name, path, operand, node.op, shape, decision, why, {} if reason else detail))
    return rows


def _refusal(number: int, attention: Attention, options: Choice) -> str:
    """Why a core stays in float; empty where it does not."""
    if not options.attention:
        return "attention=false"
    if number in options.skip_attention:
        return f"left out by skip_attention={number}"
    if attention.fused:
        return "a fused Attention node: no pair can be put between its products"
    if attention.tokens is None:
        return "its number of tokens is not known: no image could be run; give --data, or an input size (--crop)"
    if attention.tokens > MAX_TOKENS:
        return f"{attention.tokens} tokens: above {MAX_TOKENS} fused FP16 attention is faster"
    return f"not selected by only={';'.join(options.only)}" if options.only else ""
