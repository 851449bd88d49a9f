"""Small graphs that are illegal in one way each, built by functions named after their defect.

Every one is a legal quantised Linear (`legal`, `in_fp16`, `int4_in_blocks_of_64`) but for what its name says. What
becomes of each is in `illegal_corpus`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper
from small_graphs import FLOAT, HALF, Value, graph, node, normal, proto

K, N = 64, 64  # square, so that a wrong axis has the right length
X: Sequence[Value] = [("x", FLOAT, [1, 5, K])]
Y: Sequence[Value] = [("y", FLOAT, [1, 5, N])]
S, Z = np.array(0.05, np.float32), np.array(0, np.int8)
WS, WZ = np.linspace(0.01, 0.02, N, dtype=np.float32), np.zeros(N, np.int8)


def pair(source: str, scale: str = "s", zero: str = "z", out: str | None = None, **attributes: Any) -> list[NodeProto]:
    """Q and DQ; the result is `{source}d` or `out`."""
    zeros = [zero] if zero else []
    return [
        node("QuantizeLinear", [source, scale, *zeros], [f"{source}q"], **attributes),
        node("DequantizeLinear", [f"{source}q", scale, *zeros], [out or f"{source}d"], **attributes),
    ]


def linear(
    before: Sequence[NodeProto] = (), after: Sequence[NodeProto] = (), result: str = "y", axis: int = 1, **changes: Any
) -> ModelProto:
    """x -> pair -> MatMul with (w -> pair) -> result, with constants changed and nodes added."""
    constants = {"w": normal(K, N), "s": S, "z": Z, "ws": WS, "wz": WZ, **changes}
    nodes = [*before, *pair("x"), *pair("w", "ws", "wz", axis=axis), node("MatMul", ["xd", "wd"], [result]), *after]
    return proto(nodes, X, Y, constants)


def legal() -> ModelProto:
    return linear()


def zero_point_3() -> ModelProto:
    return linear(z=np.array(3, np.int8))


def zero_point_of_one_channel() -> ModelProto:
    return linear(wz=np.eye(1, N, dtype=np.int8)[0])


def uint8_with_zero_point_128() -> ModelProto:
    return linear(z=np.array(128, np.uint8))


def uint8_with_zero_point_0() -> ModelProto:
    return linear(z=np.array(0, np.uint8))


def int16_activations() -> ModelProto:
    return linear(z=np.array(0, np.int16))


def float8_e5m2() -> ModelProto:
    return linear(z=np.array(0, ml_dtypes.float8_e5m2))


def float_zero_point() -> ModelProto:
    return linear(z=np.array(0, np.float32))


def no_zero_point() -> ModelProto:
    made = linear()
    for quantiser in made.graph.node[:2]:
        del quantiser.input[2]
    return made


def computed_zero_point() -> ModelProto:
    made = linear(before=[node("Identity", ["z"], ["zi"])])
    made.graph.node[1].input[2] = made.graph.node[2].input[2] = "zi"
    return made


def zero_point_of_another_shape() -> ModelProto:
    return linear(wz=np.array(0, np.int8))


def zero_scale() -> ModelProto:
    return linear(s=np.array(0, np.float32))


def negative_scale() -> ModelProto:
    return linear(s=-S)


def zero_scale_of_one_channel() -> ModelProto:
    return linear(ws=np.where(np.arange(N) == 7, np.float32(0), WS))


def nan_scale() -> ModelProto:
    return linear(s=np.array(np.nan, np.float32))


def infinite_scale() -> ModelProto:
    return linear(s=np.array(np.inf, np.float32))


def scale_from_the_data() -> ModelProto:
    made = linear(before=[node("ReduceMax", ["x"], ["amax"], keepdims=0)])
    made.graph.node[1].input[1] = made.graph.node[2].input[1] = "amax"
    return made


def subnormal_scale_in_fp16() -> ModelProto:
    return in_fp16(s=np.array(2.0**-20, np.float16))


def weight_scales_of_shape_1_n() -> ModelProto:
    return linear(ws=WS[None], wz=WZ[None])


def activation_scale_a_channel() -> ModelProto:
    made = linear(s=np.full(K, 0.05, np.float32), z=np.zeros(K, np.int8))
    for quantiser in made.graph.node[:2]:
        quantiser.attribute.append(helper.make_attribute("axis", 2))
    return made


def weight_scales_along_the_reduction() -> ModelProto:
    return linear(axis=0)


def weight_scales_along_the_reduction_of_a_gemm() -> ModelProto:
    nodes = [*pair("x"), *pair("w", "ws", "wz", axis=1), node("Gemm", ["xd", "wd"], ["y"], transB=1)]
    constants = {"w": normal(N, K), "s": S, "z": Z, "ws": WS, "wz": WZ}
    return proto(nodes, [("x", FLOAT, [5, K])], [("y", FLOAT, [5, N])], constants)


def turned(axis: int = 0) -> ModelProto:
    """A weight [N, K] that a Transpose turns after its pair."""
    turn = [*pair("w", "ws", "wz", axis=axis), node("Transpose", ["wd"], ["wt"], perm=[1, 0])]
    constants = {"w": normal(N, K), "s": S, "z": Z, "ws": WS, "wz": WZ}
    return proto([*pair("x"), *turn, node("MatMul", ["xd", "wt"], ["y"])], X, Y, constants)


def weight_scales_along_the_reduction_before_a_transpose() -> ModelProto:
    return turned(axis=1)


def weight_scales_of_another_length() -> ModelProto:
    return linear(ws=WS[:48], wz=WZ[:48])


def axis_beyond_the_rank() -> ModelProto:
    return linear(axis=2)


def int32_bias() -> ModelProto:
    after = [node("DequantizeLinear", ["b", "bs", "bz"], ["bd"], axis=0), node("Add", ["h", "bd"], ["y"])]
    constants = {"b": np.arange(N, dtype=np.int32), "bs": WS, "bz": np.zeros(N, np.int32)}
    return linear(after=after, result="h", **constants)


def qlinear_matmul() -> ModelProto:
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        node("QLinearMatMul", ["xq", "s", "z", "w", "s", "z", "s", "z"], ["h"]),
        node("DequantizeLinear", ["h", "s", "z"], ["y"]),
    ]
    return proto(nodes, X, Y, {"s": S, "z": Z, "w": np.ones((K, N), np.int8)})


def matmul_integer() -> ModelProto:
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        node("MatMulInteger", ["xq", "w", "z", "z"], ["h"]),
        node("Cast", ["h"], ["y"], to=FLOAT),
    ]
    return proto(nodes, X, Y, {"s": S, "z": Z, "w": np.ones((K, N), np.int8)})


def dynamic_quantize_linear() -> ModelProto:
    nodes = [node("DynamicQuantizeLinear", ["x"], ["xq", "s", "z"]), node("DequantizeLinear", ["xq", "s", "z"], ["y"])]
    return proto(nodes, X, Y)


def contrib_quantize_linear() -> ModelProto:
    made = linear()
    for quantiser in made.graph.node[:2]:
        quantiser.domain = "com.microsoft"
    made.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return made


def codes_read_without_dequantising() -> ModelProto:
    nodes = [node("QuantizeLinear", ["x", "s", "z"], ["xq"]), node("Cast", ["xq"], ["y"], to=FLOAT)]
    return proto(nodes, X, Y, {"s": S, "z": Z})


def pair_with_two_scales() -> ModelProto:
    made = linear(s2=2 * S)
    made.graph.node[1].input[1] = "s2"
    return made


def quantised_residual_add() -> ModelProto:
    """h = x + Linear(x) quantised, and read by the next residual Add."""
    after = [
        node("Add", ["x", "m"], ["h"]),
        *pair("h"),
        node("MatMul", ["hd", "wd"], ["k"]),
        node("Add", ["hd", "k"], ["y"]),
    ]
    return linear(after=after, result="m")


def zero_point_3_in_a_branch() -> ModelProto:
    inner = graph(pair("x", out="d"), [], [("d", FLOAT, None)], {})
    other = graph([node("Identity", ["x"], ["e"])], [], [("e", FLOAT, None)], {})
    nodes = [node("If", ["c"], ["y"], then_branch=inner, else_branch=other)]
    return proto(nodes, [*X, ("c", TensorProto.BOOL, [])], Y, {"s": S, "z": np.array(3, np.int8)})


def in_fp16(before: Sequence[NodeProto] = (), **changes: Any) -> ModelProto:
    """`legal` in FP16."""
    constants = {"w": normal(K, N), "s": S, "ws": WS} | {k: changes.pop(k) for k in ("s", "ws") if k in changes}
    halves = {
        name: value if value.dtype == np.float64 else value.astype(np.float16) for name, value in constants.items()
    }
    nodes = [*before, *pair("x"), *pair("w", "ws", "wz", axis=1), node("MatMul", ["xd", "wd"], ["y"])]
    half = [(name, HALF, shape) for name, _, shape in (*X, *Y)]
    return proto(nodes, half[:1], half[1:], {**halves, "z": Z, "wz": WZ, **changes})


def fp32_scale_of_an_fp16_activation() -> ModelProto:
    made = in_fp16(s32=S)
    for quantiser in made.graph.node[:2]:
        quantiser.input[1] = "s32"
    return made


def fp32_scale_of_an_fp16_graphs_weight() -> ModelProto:
    made = in_fp16(w32=normal(K, N), ws32=WS)
    for quantiser, source in zip(made.graph.node[2:4], ("w32", "wq"), strict=True):
        quantiser.input[0], quantiser.input[1] = source, "ws32"
    return made


def int4(block: int = 64, axis: int = 0, kind: Any = ml_dtypes.int4, opset: int = 21) -> ModelProto:
    """FP16 activations, INT4 weight in blocks along K = 128."""
    shape = [128, N]
    scales = [*shape]
    scales[axis] = -(-scales[axis] // block) if block else 1
    constants = {
        "w": np.ones(shape, kind),
        "s": np.full(scales if block else [N], 0.1, np.float16),
        "z": np.zeros(scales if block else [N], kind),
    }
    attributes = {"axis": axis, "block_size": block} if block else {"axis": 1}
    nodes = [node("DequantizeLinear", ["w", "s", "z"], ["d"], **attributes), node("MatMul", ["x", "d"], ["y"])]
    return proto(nodes, [("x", HALF, [1, 5, 128])], [("y", HALF, [1, 5, N])], constants, opset)


def int4_in_blocks_of_64() -> ModelProto:
    return int4()


def int4_in_blocks_of_20() -> ModelProto:
    return int4(block=20)


def int4_in_blocks_along_the_output() -> ModelProto:
    return int4(axis=1)


def int4_without_blocks() -> ModelProto:
    return int4(block=0)


def uint4() -> ModelProto:
    return int4(kind=ml_dtypes.uint4)


def int4_activations() -> ModelProto:
    return linear(z=np.array(0, ml_dtypes.int4))


def int8_in_blocks() -> ModelProto:
    return int4(kind=np.int8)


def opset_26() -> ModelProto:
    made = linear()
    made.opset_import[0].version = 26
    return made


def opset_10() -> ModelProto:
    return proto([node("MatMul", ["x", "w"], ["y"])], X, Y, {"w": normal(K, N)}, 10)
