"""A weight stored as codes is called by the codes' true type, and never INT8 or float for short."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from gpusq_onnx.graph.io import load
from gpusq_onnx.graph.sites import find_sites
from gpusq_onnx.report.inspection import inspect_model

K = N = 32
ROWS: list[tuple[str, Any, str, str]] = [
    # ONNX type, numpy type, type of the pair on the data, kernel
    ("int8", np.int8, "int8", "INT8"),
    ("int8", np.int8, "", "FP32"),
    ("int4", ml_dtypes.int4, "", "FP32 x INT4"),
    ("int4", ml_dtypes.int4, "int8", "INT8 x INT4"),
    ("float8e4m3fn", ml_dtypes.float8_e4m3fn, "float8e4m3fn", "FP8"),
]


def _model(kind: str, numpy_type: Any, data: str, float_weight: bool) -> ModelProto:
    """MatMul(x, DQ(codes)) or, with a float weight, MatMul(x, DQ(Q(w))); a pair of type `data` on x where named."""
    codes = np.random.default_rng(0).integers(-7, 8, (K, N))
    nodes, constants = [], {"scale": np.full(N, 0.1, np.float32), "zero": np.zeros(N, numpy_type)}
    if float_weight:
        constants["w"] = (codes * 0.1).astype(np.float32)
        nodes.append(helper.make_node("QuantizeLinear", ["w", "scale", "zero"], ["codes"], name="q", axis=1))
    else:
        constants["codes"] = codes.astype(numpy_type)
    nodes.append(helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["wd"], name="dq", axis=1))
    x = "x"
    if data:
        zero = ml_dtypes.float8_e4m3fn if data.startswith("float8") else np.int8
        constants |= {"x_scale": np.array(0.05, np.float32), "x_zero": np.zeros((), zero)}
        nodes.append(helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["xq"], name="xq"))
        nodes.append(helper.make_node("DequantizeLinear", ["xq", "x_scale", "x_zero"], ["xd"], name="xdq"))
        x = "xd"
    nodes.append(helper.make_node("MatMul", [x, "wd"], ["y"], name="matmul"))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4, K]) for name in ("x", "y")]
    stored = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize("float_weight", [False, True], ids=["codes", "float"])
@pytest.mark.parametrize(("kind", "numpy_type", "data", "precision"), ROWS)
def test_types_have_their_names(
    kind: str, numpy_type: Any, data: str, precision: str, float_weight: bool, tmp_path: Any
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(_model(kind, numpy_type, data, float_weight).SerializeToString())
    model = load(path)
    (site,) = find_sites(model)
    assert site.quantised == ("qdq" if float_weight else kind)
    assert site.code_type == kind
    (weight,) = inspect_model(model).weights
    assert weight.dtype == ("float" if float_weight else kind)
    assert weight.codes == kind
    assert ("input" in weight.quantised) == bool(data)
    assert str(weight.kernel) == f"dense {precision}"
    reported = [obstacle.text for obstacle in weight.obstacles if obstacle.kind == "precision"]
    assert not any("quantise its ," in text or "its  " in text for text in reported)
