"""Every operator of the table against onnxruntime; a row without a case fails."""

import numpy as np
import pytest
from onnx_cases import Case, both, ints, values

from gpusq_onnx.errors import UnsupportedModelError
from gpusq_onnx.torchgraph.convert import TABLE

f32, i64 = np.float32, np.int64
NUMBER = np.array(0.7, f32)
MASK = values(4, 6) > 0
UNARY = (
    "Abs Neg Sign Exp Sin Cos Floor Ceil Round Erf Tanh Sigmoid Relu Softplus HardSwish Identity Dropout IsNaN IsInf"
)
POSITIVE = "Sqrt Log Reciprocal"
REDUCTIONS = "Mean Sum Max Min Prod L1 L2 SumSquare LogSumExp"

CASES = [
    *(Case(op) for op in UNARY.split()),
    *(Case(op, positive=True) for op in POSITIVE.split()),
    *(Case(op, constants=[values(4, 6, seed=9)]) for op in "Add Sub Mul Div Max Min Sum Mean PRelu Equal".split()),
    *(Case(op, constants=[NUMBER]) for op in "Add Sub Mul Div Greater Less LessOrEqual GreaterOrEqual".split()),
    *(Case(op, constants=[NUMBER], first=False) for op in "Sub Div Mul Greater".split()),
    *(Case(op, kind=np.bool_, constants=[MASK]) for op in "And Or Xor".split()),
    Case("Not", kind=np.bool_),
    Case("Mish", opset=22),
    Case("Div", kind=i64, constants=[ints(3)]),
    Case("Mod", kind=i64, constants=[ints(3)]),
    Case("Mod", constants=[NUMBER], attributes={"fmod": 1}),
    Case("Pow", constants=[np.array(2.0, f32)]),
    Case("Pow", constants=[np.array(0.5, f32)], positive=True),
    Case("HardSigmoid", attributes={"alpha": 0.3}),
    Case("LeakyRelu", attributes={"alpha": 0.2}),
    Case("Elu", attributes={"alpha": 0.7}),
    Case("Gelu"),
    Case("Gelu", attributes={"approximate": "tanh"}),
    Case("Clip", constants=[np.array(-0.5, f32), np.array(0.5, f32)]),
    Case("Clip", constants=[None, np.array(0.5, f32)]),
    Case("Cast", attributes={"to": 7}),
    Case("Cast", attributes={"to": 9}),
    Case("CastLike", constants=[ints(1)]),
    Case("Where", kind=np.bool_, constants=[values(4, 6), NUMBER]),
    Case("Shape"),
    Case("Shape", attributes={"start": 1, "end": -1}),
    Case("Size"),
    Case("Reshape", constants=[ints(0, 2, -1)]),
    Case("Reshape", constants=[ints(-1, 12)]),
    Case("Flatten", attributes={"axis": 2}),
    Case("Squeeze", (1, 6), [ints(1)]),
    Case("Unsqueeze", constants=[ints(1, -1)]),
    Case("Transpose", attributes={"perm": [2, 0, 1]}),
    Case("Transpose"),
    Case("Expand", (1, 6), [ints(1, 4, 6)]),
    Case("Concat", constants=["x", "x"], attributes={"axis": -2}),
    Case("Split", constants=[ints(1, 3)], attributes={"axis": 1}, outputs=2),
    Case("Split", attributes={"axis": -1, "num_outputs": 3}, outputs=3),
    Case("Slice", constants=[ints(1, 0), ints(2**62, -1), ints(1, 2), ints(1, 2)]),
    Case("Slice", constants=[ints(-1), ints(-(2**62)), ints(1), ints(-1)]),
    Case("Slice", constants=[ints(-2), ints(2**62), ints(-1)]),
    Case("Gather", constants=[np.array(-1)], attributes={"axis": 1}),
    Case("Gather", constants=[np.array(0)], attributes={"axis": 0}),
    Case("Gather", constants=[ints([1, -1], [0, 2])], attributes={"axis": 1}),
    Case("GatherElements", constants=[ints([[1, -1, 0]])], attributes={"axis": 1}),
    Case("GatherND", constants=[ints([0, 1], [0, -1])]),
    Case("ScatterND", constants=[ints([0, 1], [0, 3]), values(2, 6, seed=5)]),
    Case("ScatterND", constants=[ints([0, 1], [0, 1]), values(2, 6, seed=5)], attributes={"reduction": "add"}),
    Case("ScatterElements", constants=[ints([[1, -1, 0]]), values(1, 1, 3)], attributes={"axis": 1}),
    Case(
        "ScatterElements", constants=[ints([[1, 1, 0]]), values(1, 1, 3)], attributes={"axis": 2, "reduction": "add"}
    ),
    Case("Tile", constants=[ints(1, 2, 3)]),
    Case("Trilu", (5, 5), attributes={"upper": 0}),
    Case("Trilu", (5, 5), [np.array(1)]),
    Case("DepthToSpace", (8, 3, 3), attributes={"blocksize": 2}),
    Case("DepthToSpace", (8, 3, 3), attributes={"blocksize": 2, "mode": "CRD"}),
    Case("SpaceToDepth", (2, 4, 6), attributes={"blocksize": 2}),
    Case("OneHot", (3,), [ints(4), np.array([0.0, 2.0], f32)], {"axis": 1}, kind=i64),
    Case("MatMul", constants=[values(6, 5)]),
    Case("MatMul", constants=[values(3, 4)], first=False),
    Case("Gemm", (6,), [values(5, 6), values(5)], {"transB": 1}),
    Case("Gemm", (6,), [values(6, 5), values(5)], {"alpha": 0.5, "beta": 2.0}),
    Case("Gemm", (6,), [values(6, 5)]),
    Case("Einsum", constants=[values(6, 5)], attributes={"equation": "bij,jk->bki"}),
    Case("Conv", (4, 9, 8), [values(6, 2, 3, 3), values(6)], {"group": 2, "pads": [1, 0, 2, 1], "strides": [2, 1]}),
    Case("Conv", (4, 9, 8), [values(6, 4, 3, 2)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    Case("Conv", (4, 9), [values(6, 4, 3)], {"dilations": [2]}),
    Case("ConvTranspose", (4, 5, 5), [values(4, 3, 2, 2), values(3)], {"strides": [2, 2]}),
    Case("ConvTranspose", (4, 5, 6), [values(4, 3, 4, 4)], {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    Case("ConvTranspose", (4, 6), [values(4, 3, 3)], {"auto_pad": "SAME_LOWER", "dilations": [2]}),
    Case("ConvTranspose", (4, 5), [values(4, 3, 4)], {"strides": [3], "auto_pad": "SAME_LOWER", "output_padding": [1]}),
    Case("MaxPool", (3, 9, 9), attributes={"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}),
    Case("MaxPool", (3, 9, 9), attributes={"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]}),
    Case("MaxPool", (3, 8, 8), attributes={"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    Case("MaxPool", (3, 7, 8), attributes={
        "kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER", "ceil_mode": 1}),
    Case("AveragePool", (3, 9, 9), attributes={"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    Case("AveragePool", (3, 9, 9), attributes={"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    Case("GlobalAveragePool", (3, 5, 5)),
    Case("GlobalMaxPool", (3, 5, 5)),
    Case("LayerNormalization", constants=[values(6), values(6)], tolerance=5e-6),
    Case("LayerNormalization", constants=[values(4, 6)], attributes={"axis": 1, "epsilon": 1e-3}, tolerance=5e-6),
    Case("RMSNormalization", constants=[values(6)], opset=23, tolerance=5e-6),
    Case("BatchNormalization", (3, 4, 4), [values(3), values(3), values(3), np.abs(values(3)) + 1], tolerance=5e-6),
    Case("InstanceNormalization", (3, 4, 4), [values(3), values(3)], tolerance=5e-6),
    Case("GroupNormalization", (4, 5), [values(4), values(4)], {"num_groups": 2}, tolerance=5e-6),
    Case("Softmax"),
    Case("Softmax", attributes={"axis": 1}),
    Case("LogSoftmax"),
    Case("Attention", (2, 4, 8), ["x", "x"], opset=23, tolerance=5e-6),
    Case("Attention", (4, 12), ["x", "x"], {"q_num_heads": 3, "kv_num_heads": 3, "is_causal": 1}, opset=23,
         tolerance=5e-6),
    Case("Attention", (2, 4, 8), ["x", "x", values(4, 4)], {"scale": 0.3}, opset=23, tolerance=5e-6),
    Case("TopK", constants=[ints(3)], attributes={"axis": -1}, outputs=2),
    *(Case(f"Reduce{name}", constants=[ints(1, 2)], tolerance=1e-5) for name in REDUCTIONS.split()),
    Case("ReduceMean", constants=[ints(-1)], attributes={"keepdims": 0}),
    Case("ReduceMax", attributes={"noop_with_empty_axes": 1}),
    Case("ReduceMean", attributes={"axes": [1]}, opset=17),
    Case("ArgMax", attributes={"axis": 1, "keepdims": 0}),
    Case("ArgMin", attributes={"axis": 2}),
    Case("CumSum", constants=[np.array(1)], attributes={"exclusive": 1, "reverse": 1}),
    Case("Pad", constants=[ints(0, 1, 0, 0, 0, 2), np.array(3.0, f32)]),
    Case("Pad", (2, 5, 5), [ints(1, 2, 0, 1), None, ints(2, 3)], {"mode": "reflect"}),
    Case("Pad", (2, 5, 5), [ints(1, 2, 0, 1), None, ints(2, 3)], {"mode": "edge"}),
    Case("Pad", constants=[ints(0, 0, 0, 0, 0, 0)]),
    *(
        Case("Resize", (2, 5, 7), [None, np.array([1, 1, 2.0, 1.5], f32)], {
            "mode": "nearest", "coordinate_transformation_mode": place, "nearest_mode": rounding})
        for place in ("half_pixel", "asymmetric", "pytorch_half_pixel")
        for rounding in ("round_prefer_floor", "floor", "ceil", "round_prefer_ceil")
    ),
    Case("Resize", (2, 5, 7), [None, np.array([1, 1, 2.0, 2.0], f32)], {"mode": "linear"}),
    Case("Resize", (2, 6, 6), [None, np.array([1, 1, 2.0, 2.0], f32)], {"mode": "cubic", "cubic_coeff_a": -0.75},
         tolerance=1e-5),
    Case("Resize", (2, 5, 7), [None, None, ints(10, 3)], {
        "mode": "linear", "axes": [2, 3], "coordinate_transformation_mode": "align_corners"}),
    *(
        Case("Resize", (2, 5, 6), [None, None, ints(*size)], {
            "mode": mode, "axes": [2, 3], "coordinate_transformation_mode": place}, tolerance=1e-5)
        for place in ("pytorch_half_pixel", "half_pixel", "align_corners")
        for mode in ("linear", "cubic")
        for size in ((1, 1), (1, 9), (8, 1))
    ),
]  # fmt: skip

ELSEWHERE = {"QuantizeLinear", "DequantizeLinear", "TRT_FP4DynamicQuantize"}  # test_quantiser.py, test_float_grids.py
UNEVEN = [
    Case("ConvTranspose", (4, 5, 5), [values(4, 3, 3, 3)], {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    Case("ConvTranspose", (4, 5), [values(4, 3, 1)], {"strides": [3], "auto_pad": "SAME_UPPER"}),
    Case("MaxPool", (2, 6, 9), attributes={
        "kernel_shape": [3, 2], "strides": [2, 3], "pads": [0, 0, 1, 1], "ceil_mode": 1}),
]  # fmt: skip
IN_GRAPHS = {"Constant", "ConstantOfShape", "Range", "NonZero", "GridSample"}  # need other nodes, test_shapes.py


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_against_onnxruntime(case: Case) -> None:
    for expected, found in both(case):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, case.tolerance * 10, case.tolerance)


@pytest.mark.parametrize("case", UNEVEN, ids=lambda case: case.name)
def test_padding_that_torch_counts_otherwise_is_refused(case: Case) -> None:
    with pytest.raises(UnsupportedModelError, match="padding"):
        list(both(case))


def test_every_operator_of_the_table_has_a_case() -> None:
    assert set(TABLE) - {case.op for case in CASES} - ELSEWHERE - IN_GRAPHS == set()


@pytest.mark.parametrize("op", sorted(TABLE))
def test_rows_of_an_operator_are_ordered_and_differ(op: str) -> None:
    since = [row.since for row in TABLE[op]]
    assert since == sorted(set(since), reverse=True)
