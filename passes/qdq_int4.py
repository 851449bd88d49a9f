"""Q/DQ pairs with weights in 4 bits and data in 8 or 4: W4A8 and W4A4.

    int8-carrier   4-bit values in INT8 tensors, -8..7: INT8 kernels, sparse ones too, multiply them exactly; the file
                   packs to 4 bits a weight. Data of 4 bits is kept on its grid by a Clip. The form to deploy.
    native         ONNX INT4 codes. For research: no GPU has run them with data in Q/DQ pairs, the model is marked so

One scale an output channel. Blocks beside quantised data exist for research alone: TensorRT parses INT4 blocks beside
an INT8 pair and its build fails (docs/formats.md); `int4-weights` has blocks beside float data. Mixed precision: the
weights that `eight` names stay in INT8, and so does their data; one pair that several read is as wide as any of them
wants. Before 4 bits, what is one-sided (a GELU's output) is centred by an Add, and the next bias is changed to match.

Source: GPUSQ-ViT section 3.3; docs/formats.md. Limits: as `qdq-int8`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from pydantic import Field

from gpusq_onnx.errors import UnsupportedModelError
from gpusq_onnx.graph.invariants import RESEARCH
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.sites import Site
from gpusq_onnx.graph.structure import Structure
from gpusq_onnx.passes.qdq import ProfiledPass, ProfileOptions
from gpusq_onnx.pipeline.base import Context, Fact, PlanContext, PlanRow
from gpusq_onnx.pipeline.facts import ExplicitQuantisation
from gpusq_onnx.pipeline.selectors import matches, require_matches
from gpusq_onnx.quant.formats import INT4
from gpusq_onnx.quant.schemes import SCHEMES, Scheme

WARNING = (
    "INT4 Q/DQ nodes beside quantised data are for research: TensorRT documents INT4 for weights beside float data "
    "alone, and no GPU has run this form; deploy deployment=int8-carrier"
)


class QdqInt4Options(ProfileOptions):
    """Options of `qdq-int4`."""

    activations: Literal["int8", "int4"] = Field(default="int8", description="data of the Linears: W4A8 or W4A4")
    deployment: Literal["int8-carrier", "native"] = Field(
        default="int8-carrier", description="4-bit values in INT8 tensors, or ONNX INT4 codes, which are for research"
    )
    block: Literal[0, 16, 32, 64, 128] = Field(
        default=0, description="weights along K that share a scale, native only; 0: one scale an output channel"
    )
    eight: list[str] = Field(default=[], description="roles, operators or name patterns that keep 8 bits")
    weights: Literal["float", "codes"] = Field(default="float", description="stored as float before Q/DQ, or as codes")


class QdqInt4(ProfiledPass[QdqInt4Options]):
    """See the module's text."""

    name = "qdq-int4"
    summary = "explicit quantisation (QDQ) with 4-bit weights and 8- or 4-bit data, for INT8 kernels"
    source = "GPUSQ-ViT section 3.3; TensorRT explicit quantisation"
    Options = QdqInt4Options

    @property
    def native(self) -> bool:
        """Whether codes are ONNX INT4."""
        return self.options.deployment == "native"

    @property
    def scheme(self) -> Scheme:
        carried = SCHEMES["w4a4" if self.options.activations == "int4" else "w4a8"]
        if not self.native:
            return carried
        data = INT4 if self.options.activations == "int4" else carried.input
        return replace(carried, name=f"{carried.name}-native", weight=INT4, input=data, block=self.options.block)

    def scheme_of(self, site: Site) -> Scheme:
        return SCHEMES["int8"] if any(matches(name, site) for name in self.options.eight) else self.scheme

    @property
    def stores_codes(self) -> bool:
        return self.options.weights == "codes"

    def requires(self, model: Model, structure: Structure) -> None:
        super().requires(model, structure)
        if self.options.block and not self.native:
            raise UnsupportedModelError(
                "4-bit weights in blocks beside quantised data cannot be deployed",
                where=f"{self.name}{{block={self.options.block}}}",
                expected="block=0: one scale an output channel",
                found="TensorRT parses INT4 blocks beside an INT8 pair and its build fails (docs/formats.md)",
                hint="--passes int4-weights has blocks, beside float data; qdq-int4 without block has 8- or 4-bit data",
            )

    def plan(self, model: Model, structure: Structure, given: PlanContext) -> list[PlanRow]:
        require_matches(self.options.eight, structure.sites, f"{self.name}.eight")
        return super().plan(model, structure, given)

    def apply(self, model: Model, structure: Structure, plan: Sequence[PlanRow], context: Context) -> None:
        super().apply(model, structure, plan, context)
        if self.native:
            model.set_metadata({RESEARCH: WARNING})
            context.warnings.append(WARNING)

    def ensures(self, plan: Sequence[PlanRow]) -> list[Fact]:
        return [ExplicitQuantisation(tensorrt=not self.native)]
