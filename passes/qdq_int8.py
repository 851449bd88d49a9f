"""Insert QuantizeLinear/DequantizeLinear pairs for INT8 where TensorRT runs them and a ViT survives them.

    accurate      inputs and weights of every Linear in a block, the operands of the attention products
    sparse-int8   the same, and the output of every pruned Linear: TensorRT's sparse INT8 kernels are INT8 in, INT8 out

Weights get one scale an output channel, from the clip of least squared error over the weights that are not zero (mask
first, scales after: METHOD); activations one scale a tensor, from a streaming observer over the calibration data; the
softmax output is fixed at 1/127. Everything is symmetric with zero point 0, as TensorRT's parser demands.

Source: GPUSQ-ViT section 3.3; placement table in `gpusq_onnx.graph.qdq`. Limits: INT8 only; weights of one matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import numpy as np
import onnx_graphsurgeon as gs
from pydantic import Field

from gpusq_onnx.errors import NothingMatched, UnsupportedModelError
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.qdq import PROFILES, SOFTMAX_SCALE, QdqWriter, store_codes
from gpusq_onnx.graph.sites import Site
from gpusq_onnx.graph.structure import Attention, Structure
from gpusq_onnx.pipeline.base import SKIP, Context, Fact, Given, Pass, PassOptions, PlanRow
from gpusq_onnx.pipeline.calibrate import observe
from gpusq_onnx.pipeline.facts import ExplicitQuantisation
from gpusq_onnx.pipeline.selectors import Selector
from gpusq_onnx.quant.clipping import weight_scales
from gpusq_onnx.quant.formats import INT8, INT8_WEIGHT, clamp_scale, quantize
from gpusq_onnx.quant.observers import make_observer
from gpusq_onnx.sparsity.patterns import NM


class Options(PassOptions):
    """Options of `qdq-int8`."""

    profile: Literal["accurate", "sparse-int8"] = Field("accurate", description="which tensors get a pair")
    observer: Literal["minmax", "percentile", "mse", "entropy"] = Field("mse", description="how activation ranges are chosen")
    percentile: float = Field(99.99, gt=50, le=100, description="of |x|, for observer=percentile")
    attention: bool = Field(True, description="quantise the operands of both attention products")
    outputs: Literal["pruned", "all"] = Field("pruned", description="sparse-int8: outputs of the 2:4 Linears, or of all")
    weights: Literal["float", "int8"] = Field("float", description="store weights as float behind Q/DQ, or as INT8 codes")
    clip: Literal["mse", "absmax"] = Field("mse", description="how weight scales are chosen")
    only: list[str] = Field([], description="roles, operators or name patterns to quantise; empty: all of the profile")
    skip: list[str] = Field([], description="roles, operators or name patterns to leave in float")


class QdqInt8(Pass):
    """See the module's text."""

    name = "qdq-int8"
    summary = "explicit INT8 quantisation (QDQ) placed for TensorRT, scales calibrated"
    source = "GPUSQ-ViT section 3.3; TensorRT explicit quantisation"
    Options = Options

    @property
    def _options(self) -> Options:
        return cast(Options, self.options)

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
        selector = Selector(self._options.only, self._options.skip)
        selector.check(structure.sites, self.name)
        rows = [self._weight_row(site, selector) for site in structure.sites]
        if all(row.skipped for row in rows):
            raise NothingMatched(
                "no weight can be quantised",
                found="; ".join(sorted({row.reason for row in rows})[:4]) or "a graph without Linears in blocks",
                hint="gpusq-onnx plan MODEL --passes qdq-int8 lists every weight; widen the choice with only=ROLE",
            )
        chosen = {row.tensor for row in rows if not row.skipped}
        sites = [site for site in structure.sites if site.name in chosen]
        rows += self._input_rows(sites, structure)
        rows += self._output_rows(sites, structure)
        for attention in structure.attentions:
            rows += self._attention_rows(attention, structure)
        return rows

    def apply(self, model: Model, structure: Structure, plan: Sequence[PlanRow], context: Context) -> None:
        assert context.source is not None
        active = [row for row in plan if not row.skipped]
        watched = [row.tensor for row in active if row.detail.get("scale") == "observed"]
        observers = {
            name: make_observer(self._options.observer, percentile=self._options.percentile)
            for name in dict.fromkeys(watched)
        }
        context.findings["images"] = observe(
            model, {name: observer.update for name, observer in observers.items()}, context.source, context.progress
        )
        tensors = model.graph.tensors()
        nodes = {node.name or node.outputs[0].name: node for node in model.graph.nodes}
        sites = {site.name: site for site in structure.sites}
        writer = QdqWriter(model, structure.types)
        scales: dict[str, float] = {}
        context.progress.start("quantising weights", len(sites))
        for row in active:
            if row.decision == "quantise weight":
                site = sites[row.tensor]
                writer.weight(site, weight_scales(site.read(), INT8_WEIGHT, method=self._options.clip))
                context.progress.advance()
                continue
            tensor = tensors[row.tensor]
            scale = SOFTMAX_SCALE if row.detail["scale"] == "1/127" else observers[row.tensor].scale(INT8)
            scales[row.tensor] = float(clamp_scale(scale, structure.types.get(row.tensor, np.float32)))
            readers = [nodes[name] for name in row.detail["readers"]]
            writer.activation(tensor, scales[row.tensor], readers)
        writer.finish()
        context.progress.finish()
        context.findings["scales"] = scales
        if self._options.weights == "int8":
            _store_codes(model, [sites[row.tensor] for row in active if row.decision == "quantise weight"])

    def ensures(self, plan: Sequence[PlanRow]) -> list[Fact]:
        return [ExplicitQuantisation()]

    def _weight_row(self, site: Site, selector: Selector) -> PlanRow:
        placement = PROFILES[self._options.profile]
        reason = selector.refuses(site)
        if reason is None and site.role not in placement.inputs and not self._options.only:
            reason = f"a {site.role} stays in float: only Linears in blocks are quantised"
        if reason is None and site.conflicts:
            reason = site.conflicts[0]
        decision = SKIP if reason else "quantise weight"
        reason = reason or f"INT8, one scale an output channel, {self._options.clip} clip over its non-zero weights"
        return PlanRow(site.name, site.path, site.role, site.op, (site.out, site.k), decision, reason)

    def _input_rows(self, sites: list[Site], structure: Structure) -> list[PlanRow]:
        readers: dict[str, list[Site]] = {}
        for site in sites:
            for tensor in {site.activation.name: None}:
                readers.setdefault(tensor, []).append(site)
        rows = []
        for tensor, shared in readers.items():
            roles = " and ".join(dict.fromkeys(site.role for site in shared))
            nodes = [node for site in shared for node in site.readers]
            rows.append(_activation_row(tensor, shared[0], structure, nodes, f"one pair for the input of {roles}"))
        return rows

    def _output_rows(self, sites: list[Site], structure: Structure) -> list[PlanRow]:
        rows = []
        for site in sites:
            if site.role not in PROFILES[self._options.profile].outputs:
                continue
            if self._options.outputs == "pruned" and not NM(2, 4).holds(site.read()):
                continue
            why = "sparse INT8 kernels write INT8: a pair between the bias and what follows"
            rows.append(_activation_row(site.output.name, site, structure, list(site.output.outputs), why))
        return rows

    def _attention_rows(self, attention: Attention, structure: Structure) -> list[PlanRow]:
        score, context = attention.scores, attention.context
        limit = PROFILES[self._options.profile].max_tokens
        reason = ""
        if not self._options.attention:
            reason = "attention=false"
        elif attention.fused:
            reason = "a fused Attention node: no pair can stand between its products"
        elif attention.tokens is None or attention.tokens > limit:
            reason = f"{attention.tokens or 'an unknown number of'} tokens; above {limit} fused FP16 attention is faster"
        elif self._options.only:
            reason = f"not selected by only={';'.join(self._options.only)}"
        rows = []
        for node, index, operand in ((score, 0, "Q"), (score, 1, "K"), (context, 0, "softmax"), (context, 1, "V")):
            tensor = node.inputs[index]
            detail = {"scale": "1/127" if operand == "softmax" else "observed", "readers": [_key(node)]}
            why = reason or f"operand {operand} of an attention product" + (" at scale 1/127" if operand == "softmax" else "")
            shape = structure.shapes.get(tensor.name, ())
            decision = SKIP if reason else "quantise activation"
            rows.append(PlanRow(tensor.name, "", "activation", node.op, shape, decision, why, {} if reason else detail))
        return rows


def _activation_row(tensor: str, site: Site, structure: Structure, readers: list[gs.Node], why: str) -> PlanRow:
    shape = structure.shapes.get(tensor, ())
    detail = {"scale": "observed", "readers": [_key(node) for node in readers]}
    return PlanRow(tensor, site.path, "activation", site.op, shape, "quantise activation", why, detail)


def _key(node: gs.Node) -> str:
    return str(node.name or node.outputs[0].name)


def _store_codes(model: Model, sites: list[Site]) -> None:
    from gpusq_onnx.pipeline.facts import weight_scale

    for site in sites:
        site.trail = [node for node in site.weight.outputs[0].outputs[0].outputs]
        store_codes(model, site, quantize(site.read(), weight_scale(site), INT8_WEIGHT, axis=0))
