"""Insert QuantizeLinear/DequantizeLinear pairs where TensorRT runs them and a ViT survives them.

    accurate      inputs and weights of every Linear and convolution, the operands of the attention products
    sparse-int8   the same, and the output of every pruned one: TensorRT's sparse INT8 kernels are INT8 in, INT8 out.
                  Not where the graph's caller gets the output: it is float, and the kernel a dense one

Every constant weight is quantised unless `graph.exclusions` has a reason: first layers, heads, tiny sides, depthwise
Convs.

Weights get one scale an output channel, from the clip of least squared error over the weights that are not zero (mask
first, scales after: docs/method.md); activations one scale a tensor, of the highest mean signal-to-noise ratio over
the calibration images, with outlier channels moved into weights; the softmax output the scale of least error of its
product with V, at most 1/127. Everything is symmetric with zero point 0, as TensorRT's parser demands.

`qdq` takes any scheme of `quant.schemes` with static scales; `qdq-int8` is its name for INT8 weights and activations.

Source: GPUSQ-ViT section 3.3; placement in `gpusq_onnx.graph.qdq.pairs`; equalising `gpusq_onnx.quant.equalise`.
Limits: one scale an activation tensor.
"""

from __future__ import annotations

from typing import Literal, TypeVar

from pydantic import Field, field_validator

from gpusq_onnx.calibration.quantising_pass import QuantiseOptions, QuantisingPass
from gpusq_onnx.graph.sites import Site
from gpusq_onnx.pipeline.base import PlanContext
from gpusq_onnx.pipeline.facts import pattern_of
from gpusq_onnx.quant.schemes import SCHEMES, Scheme


class ProfileOptions(QuantiseOptions):
    """Options of passes whose codes INT8 kernels multiply."""

    profile: Literal["accurate", "sparse-int8"] = Field(default="accurate", description="which tensors get a pair")
    outputs: Literal["pruned", "all"] = Field(
        default="pruned", description="sparse-int8: of the pruned Linears, or of all"
    )


OptionsT = TypeVar("OptionsT", bound=ProfileOptions)


class ProfiledPass(QuantisingPass[OptionsT]):
    """A quantising pass for INT8 kernels: the sparse ones are INT8 in, INT8 out."""

    @property
    def narrow_outputs(self) -> bool:
        return self.options.profile == "sparse-int8"

    def wants_output(self, site: Site, given: PlanContext) -> bool:
        if not self.narrow_outputs:
            return False
        return self.options.outputs == "all" or pattern_of(site, given.facts) is not None


def _static() -> list[str]:
    """The schemes whose scales are all known beforehand."""
    return [name for name, scheme in SCHEMES.items() if not scheme.weight.scales]


class QdqOptions(ProfileOptions):
    """Options of `qdq`."""

    scheme: str = Field(default="int8", description=f"formats of weights and inputs: {', '.join(_static())}")
    weights: Literal["float", "codes"] = Field(default="float", description="stored as float before Q/DQ, or as codes")

    @field_validator("scheme")
    @classmethod
    def _known_scheme(cls, value: str) -> str:
        if value not in _static():
            raise ValueError(f"one of {', '.join(_static())}; qdq-nvfp4 writes FP4")
        return value


class Qdq(ProfiledPass[QdqOptions]):
    """See the module's text."""

    name = "qdq"
    summary = "explicit quantisation (QDQ) by any scheme of formats, scales calibrated"
    source = "GPUSQ-ViT section 3.3; TensorRT explicit quantisation"
    Options = QdqOptions

    @property
    def scheme(self) -> Scheme:
        return SCHEMES[self.options.scheme]

    @property
    def stores_codes(self) -> bool:
        return self.options.weights == "codes"


class QdqInt8Options(ProfileOptions):
    """Options of `qdq-int8`."""

    weights: Literal["float", "int8"] = Field(
        default="float", description="stored as float before Q/DQ, or as INT8 codes"
    )


class QdqInt8(ProfiledPass[QdqInt8Options]):
    """`qdq` with INT8 weights and activations."""

    name = "qdq-int8"
    summary = "explicit INT8 quantisation (QDQ) placed for TensorRT, scales calibrated"
    source = "GPUSQ-ViT section 3.3; TensorRT explicit quantisation"
    Options = QdqInt8Options

    @property
    def scheme(self) -> Scheme:
        return SCHEMES["int8"]

    @property
    def stores_codes(self) -> bool:
        return self.options.weights == "int8"
