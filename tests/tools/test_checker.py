"""The independent checker sees what is wrong: a broken group, a float off its grid, a code beyond four bits."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tools.zoo.checker import Weight, main, weights_of


def model_of(path: Path, node: onnx.NodeProto, w: np.ndarray, scale: np.ndarray, axis: int) -> Path:
    zero = numpy_helper.from_array(np.zeros(scale.shape, np.int8), "z")
    nodes = [
        helper.make_node("QuantizeLinear", ["w", "s", "z"], ["q"], axis=axis),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], axis=axis),
        node,
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(w, "w"), numpy_helper.from_array(scale, "s"), zero],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


CODES = np.array([[0, 3, 0, -8, 0, 0, 7, 1], [5, 0, 0, 6, 2, 2, 0, 0]], np.float32)  # w[out, k]
SCALES = np.array([0.5, 0.1], np.float32)
MATMUL = helper.make_node("MatMul", ["x", "d"], ["y"])
GEMM = helper.make_node("Gemm", ["x", "d"], ["y"], transB=1)


@pytest.mark.parametrize(("node", "axis"), [(MATMUL, 1), (GEMM, 0)])
def test_the_rules_are_read_off_the_codes(tmp_path: Path, node: onnx.NodeProto, axis: int) -> None:
    w = CODES * SCALES[:, None]
    path = model_of(tmp_path / "m.onnx", node, np.ascontiguousarray(w.T) if axis else w, SCALES, axis)
    (weight,) = weights_of(path)
    assert np.array_equal(weight.codes, CODES)
    assert (weight.rules, weight.four_bits, weight.on_grid, weight.element) == (("2:4", "4:8"), True, True, "int8")
    assert weight.broken("4:8pair") == 2 and weight.broken("1:4") == 4 and weight.broken("2:16") == -1
    assert (main([str(path), "2:4"]), main([str(path), "4:8pair"])) == (0, 1)


def test_a_conv_is_judged_along_its_channels(tmp_path: Path) -> None:
    codes = np.zeros((1, 4, 1, 2), np.float32)
    codes[0, :3, 0, 0] = 9
    node = helper.make_node("Conv", ["x", "d"], ["y"])
    (weight,) = weights_of(model_of(tmp_path / "m.onnx", node, codes * np.float32(0.5), SCALES[:1], 0))
    assert (weight.broken("2:4"), weight.four_bits, weight.length) == (1, False, 4)


def test_a_float_off_its_grid_is_seen(tmp_path: Path) -> None:
    w = CODES * SCALES[:, None]
    w[0, 1] *= np.float32(1.01)
    (weight,) = weights_of(model_of(tmp_path / "m.onnx", GEMM, w, SCALES, 0))
    assert not weight.on_grid


def test_no_rule_is_no_rule() -> None:
    with pytest.raises(ValueError, match="no rule"):
        Weight("w", "MatMul", CODES, "", 8, True).broken("two of four")
