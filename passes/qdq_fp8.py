"""Explicit FP8 quantisation (E4M3): weights one scale an output channel, activations and attention operands one scale.

TensorRT fuses attention in FP8 where the pairs are the last thing before its products. So the factor 1/sqrt(depth) goes
before Q's pair, where an exporter put it after the product or shared it with K: the same product, and to the bit where
the factor is a power of two. K's transpose is before its pair already.

    scores = (Q K') s              ->  (Q s) K'
    scores = (Q sqrt s)(K' sqrt s) ->  (Q s) K'

A float grid rounds relative to each value, so outlier channels do not cost the others their precision: nothing is
equalised by default, and nothing is clipped. TensorRT's entropy calibrator is defined for steps of equal width and does
not apply.

Source: TensorRT explicit quantisation; OCP 8-bit floating point; docs/formats.md for attention. Limits: a default
onnxruntime session refuses FP8 products (`graph.qdq.simulated`): the file is proven with `session.disable_quant_qdq=1`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from pydantic import Field

from gpusq_onnx.calibration.quantising_pass import QuantiseOptions, QuantisingPass
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.rewrites.attention_scale import move_scale, scale_to_move
from gpusq_onnx.graph.structure import Structure, analyse
from gpusq_onnx.pipeline.base import Context, PlanContext, PlanRow
from gpusq_onnx.pipeline.details import OperandPair, ScaledOperandPair, rows_with
from gpusq_onnx.quant.schemes import SCHEMES, Scheme


class QdqFp8Options(QuantiseOptions):
    """Options of `qdq-fp8`."""

    equalise: bool = Field(
        default=False, description="move outlier channels into LayerNorms and weights: FP8 has no need of it"
    )
    weights: Literal["float", "fp8"] = Field(
        default="float", description="stored as float before Q/DQ, or as FP8 codes"
    )


class QdqFp8(QuantisingPass[QdqFp8Options]):
    """See the module's text."""

    name = "qdq-fp8"
    summary = "explicit FP8 (E4M3) quantisation, attention placed as TensorRT fuses it"
    source = "TensorRT explicit quantisation; OCP 8-bit floating point specification"
    Options = QdqFp8Options

    @property
    def scheme(self) -> Scheme:
        return SCHEMES["fp8"]

    @property
    def stores_codes(self) -> bool:
        return self.options.weights == "fp8"

    def plan(self, model: Model, structure: Structure, given: PlanContext) -> list[PlanRow]:
        rows = super().plan(model, structure, given)
        return [self._with_scale(row, structure) for row in rows]

    def apply(self, model: Model, structure: Structure, plan: Sequence[PlanRow], context: Context) -> None:
        moved = [pair.attention for _, pair in rows_with(plan, ScaledOperandPair)]
        for number in moved:
            move_scale(model, structure.attentions[number])
        if moved:
            structure = analyse(model)
            plan = [_renamed(row, structure) for row in plan]
        super().apply(model, structure, plan, context)

    def _with_scale(self, row: PlanRow, structure: Structure) -> PlanRow:
        """The row of a Q operand says that the scores' factor moves before it, or why it does not."""
        pair = row.detail
        if not isinstance(pair, OperandPair) or pair.operand != "Q":
            return row
        found = scale_to_move(structure.attentions[pair.attention])
        if isinstance(found, str):
            return replace(row, reason=f"{row.reason}; {found}")
        detail = ScaledOperandPair(**vars(pair), scale=found)
        return replace(row, reason=f"{row.reason}; the factor {found:g} of the scores moves before it", detail=detail)


def _renamed(row: PlanRow, structure: Structure) -> PlanRow:
    """The row of an attention operand after factors moved: the products read other tensors."""
    pair = row.detail
    if not isinstance(pair, OperandPair) or pair.operand not in ("Q", "K"):
        return row
    return replace(row, tensor=str(structure.attentions[pair.attention].scores.inputs["QK".index(pair.operand)].name))
