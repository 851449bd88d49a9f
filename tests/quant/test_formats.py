"""The integer arithmetic against ONNX's own reference QuantizeLinear and DequantizeLinear."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from gpusq_onnx.quant.formats import INT8, INT8_WEIGHT, IntFormat, clamp_scale, dequantize, fake_quantize, quantize


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


def test_halves_round_to_even_and_the_ends_saturate():
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.5, 1e9, -127.5, -128.5, -1e9, 0.0, -0.0])
    full = [0, 2, 2, 0, -2, 126, 127, 127, -128, -128, -128, 0, 0]
    np.testing.assert_array_equal(quantize(x, 1.0, INT8), full)
    np.testing.assert_array_equal(quantize(x, 1.0, INT8_WEIGHT), np.maximum(full, -127))


def test_ranges():
    assert (INT8.qmin, INT8.qmax) == (-128, 127)
    assert (INT8_WEIGHT.qmin, INT8_WEIGHT.qmax) == (-127, 127)
    assert (IntFormat(4).qmin, IntFormat(4).qmax) == (-8, 7)
    for bits in (1, 9):
        with pytest.raises(ValueError, match=str(bits)):
            IntFormat(bits)


@given(
    hnp.arrays(np.float32, (4, 8), elements=st.floats(-1000, 1000, width=32)),
    st.floats(2.0**-14, 10),
    st.integers(2, 8),
    st.booleans(),
)
def test_in_range_values_are_off_by_half_a_step_and_zeros_stay_zero(x, scale, bits, narrow):
    fmt = IntFormat(bits, narrow)
    codes = quantize(x, scale, fmt)
    assert codes.dtype == np.int8
    assert codes.min() >= fmt.qmin
    assert codes.max() <= fmt.qmax
    assert not codes[x == 0].any()
    scale32 = float(np.float32(scale))
    inside = (x >= fmt.qmin * scale32) & (x <= fmt.qmax * scale32)
    assert (np.abs(dequantize(codes, scale) - x)[inside] <= scale32 * 0.50001).all()
    np.testing.assert_array_equal(quantize(dequantize(codes, scale), scale, fmt), codes)


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
