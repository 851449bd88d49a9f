"""Insert QuantizeLinear/DequantizeLinear pairs for INT8 where TensorRT runs them and a ViT survives them.

    accurate      inputs and weights of every Linear and convolution, the operands of the attention products
    sparse-int8   the same, and the output of every pruned one: TensorRT's sparse INT8 kernels are INT8 in, INT8 out

Every constant weight is quantised unless `graph.exclusions` has a reason: first layers, heads, tiny sides, depthwise
Convs, Convs on joined feature maps.

Weights get one scale an output channel, from the clip of least squared error over the weights that are not zero (mask
first, scales after: docs/method.md); activations one scale a tensor, from a streaming observer over the calibration
data, with outlier channels moved into weights; the softmax output the scale of least error of its product with V, at
most 1/127. Everything is symmetric with zero point 0, as TensorRT's parser demands.

Source: GPUSQ-ViT section 3.3; placement in `gpusq_onnx.graph.qdq`; equalising `gpusq_onnx.quant.equalise`.
Limits: INT8 only; one scale an activation tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from gpusq_onnx.errors import NothingMatched, UnsupportedModelError
from gpusq_onnx.graph.exclusions import SMALLEST, excluded
from gpusq_onnx.graph.model import Model, Tensor
from gpusq_onnx.graph.qdq import MAX_TOKENS
from gpusq_onnx.graph.rescale import foldable_norm, own_bias
from gpusq_onnx.graph.sites import Site
from gpusq_onnx.graph.structure import Attention, Structure
from gpusq_onnx.pipeline.base import SKIP, Context, Fact, Given, Pass, PassOptions, PlanRow
from gpusq_onnx.pipeline.facts import ExplicitQuantisation, is_pruned
from gpusq_onnx.pipeline.quantise import Settings, quantise
from gpusq_onnx.pipeline.ranges import When
from gpusq_onnx.pipeline.selectors import Selector
from gpusq_onnx.quant.observers import make_observer


class QdqInt8Options(PassOptions):
    """Options of `qdq-int8`."""

    profile: Literal["accurate", "sparse-int8"] = Field("accurate", description="which tensors get a pair")
    observer: Literal["minmax", "percentile", "mse", "entropy"] = Field("mse", description="of activation ranges")
    percentile: float = Field(99.99, gt=50, le=100, description="of |x|, for observer=percentile")
    attention: bool = Field(True, description="quantise the operands of both attention products")
    outputs: Literal["pruned", "all"] = Field("pruned", description="sparse-int8: of the 2:4 Linears, or of all")
    weights: Literal["float", "int8"] = Field("float", description="stored as float before Q/DQ, or as INT8 codes")
    equalise: bool = Field(True, description="move outlier channels into LayerNorms, weights and, where needed, a Mul")
    bias_correction: bool = Field(True, description="let biases absorb the mean rounding error")
    softmax: Literal["observed", "fixed"] = Field("observed", description="its scale: calibrated, or 1/127")
    clip: Literal["mse", "absmax"] = Field("mse", description="how weight scales are chosen")
    only: list[str] = Field([], description="roles, operators or name patterns to quantise; empty: all")
    skip: list[str] = Field([], description="roles, operators or name patterns to leave in float")
    smallest: int = Field(SMALLEST, ge=1, description="weights with a side below this stay in float")


class QdqInt8(Pass[QdqInt8Options]):
    """See the module's text."""

    name = "qdq-int8"
    kind = "quantise"
    summary = "explicit INT8 quantisation (QDQ) placed for TensorRT, scales calibrated"
    source = "GPUSQ-ViT section 3.3; TensorRT explicit quantisation"
    Options = QdqInt8Options

    @property
    def needs_data(self) -> bool:
        return True

    def requires(self, model: Model, structure: Structure) -> None:
        pairs = [node for node in model.graph.nodes if node.op in ("QuantizeLinear", "DequantizeLinear")]
        if pairs:
            raise UnsupportedModelError(
                "the model is quantised already",
                where=f"node {pairs[0].name!r}",
                expected="a float model",
                found=f"{len(pairs)} QuantizeLinear and DequantizeLinear nodes",
                hint="start from the float model; a quantised one is checked by gpusq-onnx inspect",
            )

    def plan(self, model: Model, structure: Structure, given: Given) -> list[PlanRow]:
        selector = Selector(self.options.only, self.options.skip)
        selector.check(structure.sites, self.name)
        rows = [self._weight_row(site, selector) for site in structure.sites]
        if all(row.skipped for row in rows):
            raise NothingMatched(
                "no weight can be quantised",
                found="; ".join(sorted({row.reason for row in rows})[:4]) or "a graph without constant weights",
                hint="gpusq-onnx plan MODEL --passes qdq-int8 lists every weight; widen the choice with only=ROLE",
            )
        chosen = {row.tensor for row in rows if not row.skipped}
        sites = [site for site in structure.sites if site.name in chosen]
        inputs = self._input_rows(sites, structure)
        rows += inputs
        rows += self._output_rows(sites, structure, given, {row.tensor for row in inputs})
        for number, attention in enumerate(structure.attentions):
            rows += self._attention_rows(number, attention, structure)
        return rows

    def apply(self, model: Model, structure: Structure, plan: Sequence[PlanRow], context: Context) -> None:
        options = self.options
        settings = Settings(
            observer=lambda importance: make_observer(
                options.observer, percentile=options.percentile, importance=importance
            ),
            bias_correction=options.bias_correction,
            clip=options.clip,
            codes=options.weights == "int8",
        )
        quantise(model, structure, plan, settings, context)

    def ensures(self, plan: Sequence[PlanRow]) -> list[Fact]:
        return [ExplicitQuantisation()]

    def _weight_row(self, site: Site, selector: Selector) -> PlanRow:
        named = bool(self.options.only)
        reason = selector.refuses(site) or excluded(site, "quantise", smallest=self.options.smallest, named=named)
        decision = SKIP if reason else "quantise weight"
        reason = reason or f"INT8, one scale an output channel, {self.options.clip} clip over its non-zero weights"
        return PlanRow(site.name, site.path, site.role, site.op, (site.out, site.k), decision, reason)

    def _input_rows(self, sites: list[Site], structure: Structure) -> list[PlanRow]:
        shared: dict[str, tuple[Tensor, list[Site]]] = {}
        for site in sites:
            for tensor in site.activations:
                shared.setdefault(tensor.name, (tensor, []))[1].append(site)
        rows = []
        for tensor, readers in shared.values():
            why = f"one pair for the input of {' and '.join(dict.fromkeys(site.role for site in readers))}"
            equalise: When = "never"
            if any(site.conflicts or len(site.activations) > 1 for site in readers):
                why = f"{why}; a weight is shared, so its values stay: not equalised"
            elif self.options.equalise and all(site.is_linear for site in readers):
                norm = foldable_norm(tensor, readers)
                equalise = "always" if norm is not None else "outliers"
                where = "channels equalised in the LayerNorm" if norm is not None else "a Mul if channels are outliers"
                why = f"{why}; {where}"
            rows.append(_row(tensor, structure, "input", readers, equalise, why))
        return rows

    def _output_rows(self, sites: list[Site], structure: Structure, given: Given, taken: set[str]) -> list[PlanRow]:
        rows = []
        for site in sites if self.options.profile == "sparse-int8" else ():
            outputs = [output for output in site.outputs if output.name not in taken]
            if not outputs or (self.options.outputs == "pruned" and not is_pruned(site, given.facts)):
                continue
            why = "sparse INT8 kernels write INT8: a pair between the bias and what follows"
            equalise: When = "never"
            if self.options.equalise and _rows_can_be_rescaled(site):
                equalise, why = "outliers", f"{why}; a Mul if channels are outliers"
            rows += [_row(output, structure, "output", [site], equalise, why) for output in outputs]
        return rows

    def _attention_rows(self, number: int, attention: Attention, structure: Structure) -> list[PlanRow]:
        score, context = attention.scores, attention.context
        reason = ""
        if not self.options.attention:
            reason = "attention=false"
        elif attention.fused:
            reason = "a fused Attention node: no pair can be put between its products"
        elif attention.tokens is None:
            reason = "its number of tokens is not known: no image could be run; give --data, or an input size (--crop)"
        elif attention.tokens > MAX_TOKENS:
            reason = f"{attention.tokens} tokens: above {MAX_TOKENS} fused FP16 attention is faster"
        elif self.options.only:
            reason = f"not selected by only={';'.join(self.options.only)}"
        rows = []
        for node, index, operand in ((score, 0, "Q"), (score, 1, "K"), (context, 0, "softmax"), (context, 1, "V")):
            tensor = node.inputs[index]
            fixed = operand == "softmax" and self.options.softmax == "fixed"
            detail = {"side": "attention", "attention": number, "operand": operand, "fixed": fixed}
            why = reason or f"operand {operand} of an attention product{' at scale 1/127' if fixed else ''}"
            shape = structure.shapes.get(tensor.name, ())
            decision = SKIP if reason else "quantise activation"
            path = attention.proj.path.rpartition(".")[0] if attention.proj is not None else ""
            rows.append(PlanRow(tensor.name, path, operand, node.op, shape, decision, why, {} if reason else detail))
        return rows


def _row(tensor: Tensor, structure: Structure, side: str, sites: list[Site], equalise: When, why: str) -> PlanRow:
    shape = structure.shapes.get(tensor.name, ())
    detail = {"side": side, "sites": [site.name for site in sites], "equalise": equalise}
    role = f"{side} of {sites[0].role}"
    op = next((site.op for site in sites if not site.is_linear), sites[0].op)
    return PlanRow(tensor.name, sites[0].path, role, op, shape, "quantise activation", why, detail)


def _rows_can_be_rescaled(site: Site) -> bool:
    """Whether nobody else reads the weight or the bias."""
    if site.conflicts:
        return False
    return site.is_linear and len(site.readers) == 1 and (site.bias is None or own_bias(site) is not None)
