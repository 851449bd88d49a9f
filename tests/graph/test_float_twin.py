"""Taking the quantisation out of a model: what is left is the float graph, whatever form the pairs had."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from gpusq_onnx.graph.io import load, save
from gpusq_onnx.graph.qdq.float_twin import remove_quantisation
from gpusq_onnx.runtime.ort import Session

RANDOM = np.random.default_rng(3)
W = RANDOM.standard_normal((8, 6)).astype(np.float32)
X = RANDOM.standard_normal((4, 8)).astype(np.float32)
SCALE = (np.abs(W).max(0) / 127).astype(np.float32)


def quantised(path: Path, *, stored: bool, output: bool) -> Path:
    """x -> Q/DQ -> MatMul with Q/DQ (or stored codes -> DQ) -> y, and y quantised where asked."""
    constants = {"x_s": np.float32(0.02), "x_z": np.int8(0), "w_s": SCALE, "w_z": np.zeros(6, np.int8)}
    constants["w"] = np.clip(np.rint(W / SCALE), -127, 127).astype(np.int8) if stored else W
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_s", "x_z"], ["x_q"]),
        helper.make_node("DequantizeLinear", ["x_q", "x_s", "x_z"], ["x_d"]),
    ]
    if not stored:
        nodes.append(helper.make_node("QuantizeLinear", ["w", "w_s", "w_z"], ["w_q"], axis=1))
    nodes += [
        helper.make_node("DequantizeLinear", ["w" if stored else "w_q", "w_s", "w_z"], ["w_d"], axis=1),
        helper.make_node("MatMul", ["x_d", "w_d"], ["p" if output else "y"]),
    ]
    if output:
        nodes.append(helper.make_node("QuantizeLinear", ["p", "x_s", "x_z"], ["p_q"]))
        nodes.append(helper.make_node("DequantizeLinear", ["p_q", "x_s", "x_z"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "twin",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 6])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


@pytest.mark.parametrize("stored", [False, True])
def test_the_float_product_is_left(tmp_path: Path, stored: bool) -> None:
    model = load(quantised(tmp_path / "q.onnx", stored=stored, output=False))
    assert remove_quantisation(model) == 2
    save(model, tmp_path / "f.onnx")
    assert {node.op_type for node in onnx.load(tmp_path / "f.onnx").graph.node} == {"MatMul"}
    found = Session(tmp_path / "f.onnx").run({"x": X})["y"]
    weight = np.clip(np.rint(W / SCALE), -127, 127) * SCALE if stored else W
    np.testing.assert_allclose(found, X @ weight, rtol=1e-5, atol=1e-5)


def test_a_quantised_graph_output_stays(tmp_path: Path) -> None:
    model = load(quantised(tmp_path / "q.onnx", stored=False, output=True))
    assert remove_quantisation(model) == 2
    assert [node.op for node in model.graph.nodes] == ["MatMul", "QuantizeLinear", "DequantizeLinear"]
    save(model, tmp_path / "f.onnx")
    onnx.checker.check_model(str(tmp_path / "f.onnx"))


@pytest.mark.parametrize(("largest", "left"), [(7, []), (90, ["Clip"])])
def test_a_clip_goes_with_the_format_that_it_belongs_to(tmp_path: Path, largest: int, left: list[str]) -> None:
    proto = onnx.load(quantised(tmp_path / "q.onnx", stored=False, output=False))
    proto.graph.node.insert(0, helper.make_node("Clip", ["x", "low", "high"], ["clipped"]))
    proto.graph.node[1].input[0] = "clipped"
    ends = {"low": -0.02 * (largest + 1), "high": 0.02 * largest}
    proto.graph.initializer.extend(numpy_helper.from_array(np.float32(value), name) for name, value in ends.items())
    onnx.save(proto, tmp_path / "q.onnx")
    model = load(tmp_path / "q.onnx")
    remove_quantisation(model)
    assert [node.op for node in model.graph.nodes] == [*left, "MatMul"]


def test_a_float_model_is_left_alone() -> None:
    model = load(Path(__file__).parents[1] / "assets" / "digits_vit.onnx")
    before = len(model.graph.nodes)
    assert remove_quantisation(model) == 0
    assert len(model.graph.nodes) == before
