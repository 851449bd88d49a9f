"""Two models whose scores tie nearly, compared on one choice."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tools.zoo.choices import cosines_on_one_choice


def _detector(path: Path, nudge: float) -> Path:
    """x[1, 4, 3] -> its row of the highest score; `nudge` moves the scores by little."""
    constants = {"k": np.array([1]), "last": np.array([2]), "n": np.array([0, nudge, 0, 0], np.float32)}
    nodes = [
        helper.make_node("ReduceMax", ["x", "last"], ["best"], keepdims=0),
        helper.make_node("Add", ["best", "n"], ["score"]),
        helper.make_node("TopK", ["score", "k"], ["top", "picked"], axis=1),
        helper.make_node("Unsqueeze", ["picked", "last"], ["column"]),
        helper.make_node("GatherND", ["x", "column"], ["y"], batch_dims=1),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "score")],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_rows_are_compared_with_the_same_rows(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((2, 4, 3)).astype(np.float32)
    x[:, 2, 0] = 9.0
    x[:, 1] = [-9.0, 8.99, 3.0]
    found = cosines_on_one_choice(_detector(tmp_path / "a.onnx", 0), _detector(tmp_path / "b.onnx", 0.1), {"x": x})
    assert found["y"] > 1 - 1e-6
    assert 0.999 < found["score"] < 1


def test_a_model_that_chooses_nothing_has_none(tmp_path: Path) -> None:
    path = _detector(tmp_path / "a.onnx", 0)
    model = onnx.load(path)
    del model.graph.node[2:], model.graph.output[0]
    onnx.save(model, path)
    assert cosines_on_one_choice(path, path, {"x": np.zeros((1, 4, 3), np.float32)}) == {}
