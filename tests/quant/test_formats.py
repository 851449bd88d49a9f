"""The integer arithmetic against ONNX's own reference QuantizeLinear and DequantizeLinear."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from gpusq_onnx.quant.formats import (
    FORMATS,
    FP4,
    FP8,
    INT4,
    INT4_IN_INT8,
    INT8,
    Format,
    clamp_scale,
    dequantize,
    fake_quantize,
    format_of,
    natural,
    quantize,
)
from gpusq_onnx.quant.scales import Scales


def onnx_qdq(x, scale, axis):
    """Codes and values of a QuantizeLinear, DequantizeLinear pair of opset 21."""
    zero = np.zeros(np.shape(scale), np.int8)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=axis),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], axis=axis),
    ]
    graph = helper.make_graph(
        nodes,
        "qdq",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("z", TensorProto.INT8, None),
        ],
        [
            helper.make_tensor_value_info("q", TensorProto.INT8, None),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    codes, values = ReferenceEvaluator(model).run(None, {"x": x, "s": np.asarray(scale, np.float32), "z": zero})
    return codes, values


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_it_is_onnx_qdq(axis):
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((6, 9)) * 3).astype(np.float32)
    scale = np.float32(0.02) if axis is None else rng.uniform(0.01, 0.1, x.shape[axis]).astype(np.float32)
    x[:, 0] = np.float32(0.5) * (scale if axis is None else scale[0])
    codes, values = onnx_qdq(x, scale, 1 if axis is None else axis)
    np.testing.assert_array_equal(quantize(x, scale, INT8, axis), codes)
    np.testing.assert_array_equal(fake_quantize(x, scale, INT8, axis), values)


@pytest.mark.parametrize(
    ("fmt", "opset"), [(INT4, 21), (FP8, 19), (FP4, 23)], ids=lambda v: v.name if isinstance(v, Format) else ""
)
def test_every_format_is_the_one_of_onnx(fmt, opset):
    x = (np.random.default_rng(3).standard_normal((6, 9)) * 3 * fmt.largest * 0.02).astype(np.float32)
    kind = TensorProto.DataType.Value(fmt.element.upper())
    zero = np.zeros((), helper.tensor_dtype_to_np_dtype(kind))
    infos = [helper.make_tensor_value_info(n, t, None) for n, t in (("x", 1), ("s", 1), ("z", kind), ("y", 1))]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "qdq", infos[:3], infos[3:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    (values,) = ReferenceEvaluator(model).run(None, {"x": x, "s": np.float32(0.02), "z": zero})
    np.testing.assert_array_equal(fake_quantize(x, 0.02, fmt), values)


def test_halves_round_to_even_and_the_ends_saturate():
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.5, 1e9, -127.5, -128.5, -1e9, 0.0, -0.0])
    np.testing.assert_array_equal(quantize(x, 1.0, INT8), [0, 2, 2, 0, -2, 126, 127, 127, -128, -128, -128, 0, 0])
    np.testing.assert_array_equal(fake_quantize(x, 1.0, INT4_IN_INT8), [0, 2, 2, 0, -2, 7, 7, 7, -8, -8, -8, 0, 0])
    np.testing.assert_array_equal(fake_quantize(np.array([0.25, 0.75, 5.0, 99]), 1.0, FP4), [0, 1, 4, 6])
    assert fake_quantize(np.array([1e9]), 1.0, FP8) == 448


def test_the_table_names_each_row_once_and_knows_its_types():
    for name, fmt in FORMATS.items():
        assert fmt.name == name
        kind = TensorProto.DataType.Value(fmt.element.upper())
        assert fmt.grid == "" or helper.tensor_dtype_to_np_dtype(kind) == fmt.dtype
        assert natural(fmt.element).bits >= fmt.bits
    assert [fmt.name for fmt in FORMATS.values() if fmt.carried] == ["int4-in-int8"]
    assert natural("complex64") is None
    with pytest.raises(ValueError, match="range around zero"):
        Format("odd", "ODD", "int8", 8, 1, 7)


def test_codes_that_are_small_are_a_narrower_format():
    assert format_of("int8", np.array([-8, 7], np.int8)) is INT4_IN_INT8
    assert format_of("int8", np.array([-9, 7], np.int8)) is INT8
    assert format_of("int8") is INT8
    assert format_of("int8", np.zeros(0, np.int8)) is INT4_IN_INT8
    assert format_of("string", np.zeros(1)) is None


@given(
    hnp.arrays(np.float32, (4, 8), elements=st.floats(-1000, 1000, width=32)),
    st.floats(2.0**-14, 10),
    st.sampled_from([fmt for fmt in FORMATS.values() if not fmt.stored]),
)
@example(np.full((4, 8), 600, np.float32), 3.2, FORMATS["uint8"])  # half a step, and float32 is coarse there
def test_the_grid_is_kept_zeros_stay_zero_and_twice_is_once(x, scale, fmt):
    codes = quantize(x, scale, fmt)
    assert codes.dtype == fmt.dtype
    assert fmt.holds(codes)
    assert not codes[x == 0].any()
    once = dequantize(codes, scale)
    np.testing.assert_array_equal(quantize(once, scale, fmt), codes)
    if not fmt.grid:
        scale32 = float(np.float32(scale))
        inside = (x >= fmt.lowest * scale32) & (x <= fmt.largest * scale32)
        rounded = 2 * np.spacing(np.maximum(np.abs(once), np.abs(x)))  # x / scale, and code * scale, in float32
        assert (np.abs(once.astype(np.float64) - x)[inside] <= (scale32 / 2 + rounded)[inside]).all()


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_blocks_share_a_scale_along_their_axis(axis):
    rng = np.random.default_rng(5)
    x = rng.standard_normal((8, 8)).astype(np.float32)
    values = rng.uniform(0.05, 0.2, (2, 8) if axis == 0 else (8, 2)).astype(np.float32)
    scales = Scales(values, axis, 4, outer=0.5)
    assert scales.granularity == "block"
    whole = np.repeat(values, 4, axis=0 if axis == 0 else 1) * np.float32(0.5)
    np.testing.assert_array_equal(scales.along(x.shape), whole)
    np.testing.assert_array_equal(quantize(x, scales, INT8), np.clip(np.rint(x / whole), -128, 127))
    with pytest.raises(ValueError, match="do not fit axis"):
        scales.along((8, 16) if axis != 0 else (16, 8))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64], ids=str)
def test_other_dtypes_are_computed_in_float32(dtype):
    x = np.asfortranarray(np.random.default_rng(1).standard_normal((4, 6))).astype(dtype)
    np.testing.assert_array_equal(quantize(x, 0.01, INT8), quantize(x.astype(np.float32), 0.01, INT8))


def test_scales_are_clamped_to_what_their_type_holds():
    np.testing.assert_array_equal(clamp_scale(np.array([0, 1e-6, 0.5]), np.float16), np.float32([2**-14, 2**-14, 0.5]))
    assert np.float16(clamp_scale(1e-9, np.float16)) >= np.finfo(np.float16).tiny
    assert clamp_scale(1e-6) == np.float32(1e-6)
    assert clamp_scale(0.0) > 0
    assert clamp_scale(0.0, ml_dtypes.bfloat16).astype(ml_dtypes.bfloat16) > 0


def test_bad_arguments_are_refused_with_what_was_found():
    x = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match="NaN"):
        quantize(np.array([1.0, np.nan]), 1.0, INT8)
    for scale in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="finite and > 0"):
            quantize(x, scale, INT8)
    with pytest.raises(ValueError, match=r"\(3,\) does not fit axis 0 of shape \(2, 3\)"):
        quantize(x, np.ones(3), INT8, axis=0)
    with pytest.raises(ValueError, match="needs an axis"):
        dequantize(np.ones((2, 3), np.int8), np.ones(3))
