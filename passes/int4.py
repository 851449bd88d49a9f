"""Weights of Linears in 4 bits, everything else in floating point: smaller files, and less to read from memory.

    tensorrt      INT4 initializer -> DequantizeLinear in blocks along K -> MatMul; onnxruntime's default session takes
                  it, too, and rounds the data to INT8 there (0.6 % of a product's norm)
    onnxruntime   com.microsoft::MatMulNBits nodes, with the accuracy level that is asked for; TensorRT has no such node

A block's scale is the clip of least squared error over its weights that are not zero. With calibration data, scales and
codes are chosen by what they do to each layer's output (`calibration.rounding`); without, weights are rounded
to nearest. Blocks divide K and are no longer than `block`. Of its own accord the pass takes 64 for TensorRT, which
documents 64 and 128, shorter ones where 64 does not divide K (TensorRT-RTX's builder takes 16 to 256), and 32 for
onnxruntime. Shorter blocks are more accurate. ViT-Tiny, 128 calibration images; KL divergence from the dense model on
400 other training images, then top-1 and agreement on 650 validation images (dense 83.5 %):

    block=128   KL 0.094    81.8 %, 93.2 %     (its K = 192 get 64)
    block=64    KL 0.083    82.2 %, 94.2 %
    block=32    KL 0.063    83.2 %, 94.8 %
    rounded to nearest: 64 and 128 KL 0.194, 32 KL 0.122

Convolutions keep their weights: no kernel reads 4 bits there.

Source: docs/formats.md; forms in `gpusq_onnx.graph.qdq.weight_only`. Limits: MatMul and Gemm; weights that nobody else
reads; one zero point, which is zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

from pydantic import AliasChoices, Field

from gpusq_onnx.calibration.quantising_pass import require_float
from gpusq_onnx.calibration.rounding import (
    ROUNDING,
    Rounding,
    WeightGrid,
    round_weights,
    rounded_by_output,
    rounding_of,
)
from gpusq_onnx.errors import UnsupportedModelError
from gpusq_onnx.graph.edits import Names
from gpusq_onnx.graph.exclusions import SMALLEST
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.qdq.weight_only import NBITS, find_nbits, write_dequantized, write_nbits
from gpusq_onnx.graph.sites import Site
from gpusq_onnx.graph.structure import Structure
from gpusq_onnx.graph.wording import node_label
from gpusq_onnx.pipeline.base import (
    SKIP,
    Context,
    Fact,
    Pass,
    PlanContext,
    PlanRow,
    Written,
    leftover_rows,
    require_any,
)
from gpusq_onnx.pipeline.details import NBitsPair, WeightPair, rows_with
from gpusq_onnx.pipeline.facts import ExplicitQuantisation
from gpusq_onnx.pipeline.parallel import in_order
from gpusq_onnx.pipeline.schedule import SECOND_ORDER
from gpusq_onnx.pipeline.selectors import EndsOptions, Selector, exclusion
from gpusq_onnx.quant.clipping import weight_scales
from gpusq_onnx.quant.formats import INT4, quantize
from gpusq_onnx.quant.scales import Scales
from gpusq_onnx.quant.schemes import form_name

SIZES = (128, 64, 32, 16)
LONGEST = {"tensorrt": 64, "onnxruntime": 32}
DOCUMENTED = 64  # by TensorRT, and 128


class Int4Options(EndsOptions):
    """Options of `int4-weights`."""

    runtime: Literal["tensorrt", "onnxruntime"] = Field(
        default="tensorrt",
        validation_alias=AliasChoices("runtime", "for"),
        description="whose form: DequantizeLinear in blocks, or MatMulNBits; for=... says the same",
    )
    block: Literal["auto", 128, 64, 32, 16] = Field(
        default="auto", description="weights along K that share a scale, at most; auto: 64, or 32 for onnxruntime"
    )
    clip: Literal["mse", "absmax"] = Field(default="mse", description="how scales are chosen")
    rounding: Rounding = Field(default="auto", description=ROUNDING)
    bias_correction: bool = Field(default=True, description="rounding=gptq: let biases absorb the mean output error")
    accuracy_level: int = Field(
        default=4,
        ge=0,
        le=4,
        description="onnxruntime: of MatMulNBits; 4 rounds the data to INT8, 1 keeps it in FP32, 0 unset",
    )
    only: list[str] = Field(default=[], description="roles, operators or name patterns to quantise; empty: all")
    skip: list[str] = Field(default=[], description="roles, operators or name patterns to leave in float")
    smallest: int = Field(default=SMALLEST, ge=1, description="weights with a side below this stay in float")


class Int4Weights(Pass[Int4Options]):
    """See the module's text."""

    name = "int4-weights"
    kind = "quantise"
    float_only = True
    summary = "weights of Linears in INT4 with a scale a block, data in float"
    source = "ONNX DequantizeLinear-21; onnxruntime MatMulNBits"
    Options = Int4Options

    @property
    def needs_data(self) -> bool:
        return self.options.rounding == "gptq"

    def work(self, images: int, data: bool) -> float:
        return SECOND_ORDER * images if rounded_by_output(self.options.rounding, INT4, data) else 0.0

    def writes(self) -> Written:
        nbits = self.options.runtime == "onnxruntime"
        return Written((NBITS if nbits else form_name(INT4.name, "float", blocks=True),))

    def requires(self, model: Model, structure: Structure) -> None:
        require_float(model)
        if (found := next(find_nbits(model), None)) is not None:
            raise UnsupportedModelError(
                "the model has 4-bit weights already",
                where=node_label(found.node),
                expected="a float model",
                found=f"a MatMulNBits of {found.bits} bits",
                hint="start from the float model; a quantised one is checked by gpusq-onnx inspect",
            )

    def plan(self, model: Model, structure: Structure, given: PlanContext) -> list[PlanRow]:
        selector = Selector(self.options.only, self.options.skip)
        selector.check(structure.sites, self.name)
        rows = [self._row(site, structure, selector, given.data) for site in structure.sites]
        rows += leftover_rows(structure)
        require_any(
            rows,
            "no weight can be stored in 4 bits",
            else_found="a graph without constant weights",
            hint=f"gpusq-onnx plan --full --allow-noop MODEL --passes {self.name} lists every weight; "
            "widen with only=ROLE",
        )
        return rows

    def apply(self, model: Model, structure: Structure, plan: Sequence[PlanRow], context: Context) -> None:
        sites = {site.name: site for site in structure.sites}
        pairs = rows_with(plan, WeightPair)
        chosen = [(sites[row.tensor], pair.block) for row, pair in pairs]
        plain = in_order(partial(_scales_of, self.options.clip), chosen)
        scales_of = {site.name: scales for (site, _), scales in zip(chosen, plain, strict=True)}
        second_order = {row.tensor for row, pair in pairs if pair.rounding == "gptq"}
        if second_order:
            search, correct = self.options.clip == "mse", self.options.bias_correction
            grids = [
                WeightGrid(site, INT4, scales_of[site.name], search) for site, _ in chosen if site.name in second_order
            ]
            scales_of |= round_weights(model, grids, context, correct=correct)
        names = Names(model)
        context.progress.start("quantising weights", len(chosen))
        for site, scales in ((site, scales_of[site.name]) for site, _ in chosen):
            codes = quantize(site.read(), scales, INT4)
            if self.options.runtime == "tensorrt":
                context.renamed[site.name] = [write_dequantized(model, site, codes, scales, names)]
            else:
                write_nbits(model, site, codes, scales, names, self.options.accuracy_level)
                context.renamed[site.name] = []
            context.progress.advance()
        context.progress.finish()
        short = sum(block < DOCUMENTED for _, block in chosen)
        if short and self.options.runtime == "tensorrt":
            context.warnings.append(
                f"{short} weights have blocks below 64: TensorRT documents 64 and 128, TensorRT-RTX builds 16 to 256; "
                "gpusq-onnx check --parser --build asks the latter"
            )

    def ensures(self, plan: Sequence[PlanRow]) -> list[Fact]:
        return [ExplicitQuantisation()] if self.options.runtime == "tensorrt" else []

    def _row(self, site: Site, structure: Structure, selector: Selector, data: bool) -> PlanRow:
        block = next((size for size in self._sizes if site.k % size == 0), 0)
        reason = selector.refuses(site) or _unfit(site, structure)
        reason = reason or exclusion(site, self.options, "quantise") or ""
        if not reason and not block:
            reason = f"no block of {' or '.join(map(str, self._sizes))} divides K = {site.k}"
        head = site.name, site.path, site.role, site.op, (site.out, site.k)
        if reason:
            return PlanRow(*head, SKIP, reason)
        rounding = rounding_of(self.options.rounding, site, INT4, data)
        where = "DequantizeLinear along axis 0" if self.options.runtime == "tensorrt" else "MatMulNBits"
        how = "rounded by GPTQ; " if rounding == "gptq" else ""
        reason = f"INT4, one scale for each {block} weights along K, {self.options.clip} clip; {how}{where}"
        if self.options.runtime == "tensorrt" and block < DOCUMENTED:
            reason += "; TensorRT documents blocks of 64 and 128"
        kind = WeightPair if self.options.runtime == "tensorrt" else NBitsPair
        return PlanRow(*head, "quantise weight", reason, kind(format=INT4.name, block=block, rounding=rounding))

    @property
    def _sizes(self) -> tuple[int, ...]:
        most = LONGEST[self.options.runtime] if self.options.block == "auto" else self.options.block
        return tuple(size for size in SIZES if size <= most)


def _unfit(site: Site, structure: Structure) -> str:
    """Why no kernel would read the weight in 4 bits, or why the file would grow; empty where nothing is in the way."""
    if not site.is_linear:
        return "a convolution: no kernel reads its weights in 4 bits"
    if site.conflicts:
        return f"{site.conflicts[0]}: it would be stored twice"
    for reader in site.readers:
        rank = len(reader.inputs[site.operand(reader)].shape or (0, 0))
        if rank > 2 and len(structure.shapes.get(reader.inputs[0].name, ())) < rank:
            return "the product gets its rank from the weight, which has two axes in 4 bits"
    return ""


def _scales_of(clip: Literal["mse", "absmax"], chosen: tuple[Site, int]) -> Scales:
    site, block = chosen
    return Scales(weight_scales(site.read(), INT4, method=clip, block=block), 1, block)
