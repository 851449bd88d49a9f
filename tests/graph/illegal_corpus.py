"""What stops each graph of `illegal_graphs`: our rule, when it applies, and what TensorRT's parser makes of the graph.

Where the two verdicts differ, `why` says why ours is the stricter one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import illegal_graphs as bad
from onnx import ModelProto


@dataclass(frozen=True)
class Case:
    """One defect.

    Attributes:
        make: the graph; its name is the case's.
        says: part of what our rule says.
        stops: "load" (the file is not read), "input" (refused by `invariants.require`, and never written), or "output"
            (tolerated in a model that comes in, never written by us).
        why: empty where TensorRT's parser and builder refuse it as well; else why we do although they do not.
    """

    make: Callable[[], ModelProto]
    says: str
    stops: Literal["load", "input", "output"] = "input"
    why: str = ""

    @property
    def name(self) -> str:
        """The defect."""
        return self.make.__name__


_NOT_UINT8 = "read as INT8, where ONNX says UINT8: codes above 127 become another number, without a word"
_UNFUSED = "nothing is refused, and no INT8 kernel applies: the product runs in float between a Q and a DQ"
_DOCUMENTED = "this builder takes it; TensorRT's documentation has INT4 for weights in blocks, and for nothing else"
CORPUS: tuple[Case, ...] = (
    Case(bad.zero_point_3, "is not zero"),
    Case(bad.zero_point_of_one_channel, "is not zero"),
    Case(bad.zero_point_3_in_a_branch, "is not zero"),
    Case(bad.zero_point_of_another_shape, "differ in shape"),
    Case(bad.uint8_with_zero_point_128, "is UINT8"),
    Case(bad.uint8_with_zero_point_0, "is UINT8", why=_NOT_UINT8),
    Case(bad.no_zero_point, "no constant zero point", why=_NOT_UINT8),
    Case(
        bad.computed_zero_point,
        "no constant zero point",
        why="folded by this builder; computed zeros may change",
    ),
    Case(
        bad.float_zero_point,
        "is FLOAT",
        why="not ONNX: the zero point's type is the codes'; only zeros are looked for",
    ),
    Case(bad.int16_activations, "is INT16"),
    Case(bad.float8_e5m2, "is FLOAT8E5M2"),
    Case(bad.uint4, "is UINT4"),
    Case(bad.zero_scale, "not a positive number"),
    Case(bad.zero_scale_of_one_channel, "not a positive number"),
    Case(bad.negative_scale, "not a positive number"),
    Case(bad.nan_scale, "not a positive number"),
    Case(
        bad.infinite_scale,
        "not a positive number",
        why="inf > 0 is all that is asked; every value becomes NaN",
    ),
    Case(
        bad.subnormal_scale_in_fp16,
        "not a positive number",
        why="4 bits of the scale are left, or none",
    ),
    Case(bad.scale_from_the_data, "is computed", why="taken as a tensor; a scale of one image is dynamic quantisation"),
    Case(bad.weight_scales_of_shape_1_n, "is 1-D"),
    Case(bad.weight_scales_of_another_length, "48 scales for axis 1"),
    Case(bad.axis_beyond_the_rank, "64 scales for axis 2"),
    Case(bad.activation_scale_a_channel, "64 scales for the activation", why=_UNFUSED),
    Case(bad.weight_scales_along_the_reduction, "along axis 0, the reduction", "output", why=_UNFUSED),
    Case(bad.weight_scales_along_the_reduction_of_a_gemm, "along axis 1, the reduction", "output", why=_UNFUSED),
    Case(
        bad.weight_scales_along_the_reduction_before_a_transpose, "along axis 1, the reduction", "output", why=_UNFUSED
    ),
    Case(bad.int32_bias, "INT32"),
    Case(bad.qlinear_matmul, "(QLinearMatMul) computes on integers"),
    Case(bad.matmul_integer, "(MatMulInteger) computes on integers"),
    Case(bad.dynamic_quantize_linear, "(DynamicQuantizeLinear) computes on integers"),
    Case(
        bad.contrib_quantize_linear,
        "of the domain com.microsoft",
        "output",
        why="this parser's extension, no ONNX",
    ),
    Case(bad.codes_read_without_dequantising, "without dequantising", "output", why="legal; the scale is lost"),
    Case(bad.pair_with_two_scales, "different scales", "output", why="legal; the pair multiplies by two"),
    Case(
        bad.quantised_residual_add,
        "of the residual stream",
        "output",
        why="legal; ViT-B falls from 85 % to 5 % top-1",
    ),
    Case(bad.fp32_scale_of_an_fp16_activation, "mixes types"),
    Case(bad.fp32_scale_of_an_fp16_graphs_weight, "mixes types"),
    Case(bad.int4_in_blocks_of_20, "blocks of 20"),
    Case(bad.int4_in_blocks_along_the_output, "the output channels", why=_DOCUMENTED),
    Case(bad.int4_without_blocks, "blocks of a channel", why=_DOCUMENTED),
    Case(bad.int4_activations, "INT4 for the activation", why=_DOCUMENTED),
    Case(
        bad.int8_in_blocks,
        "INT8 in blocks",
        why="taken here; TensorRT's documentation has blocks for 4 bits",
    ),
    Case(
        bad.opset_26,
        "opset 26 is not supported",
        "load",
        why="the parser reads on; onnxruntime stops",
    ),
    Case(
        bad.opset_10,
        "opset 10 is not supported",
        "load",
        why="Softmax and Squeeze changed at 13",
    ),
)
