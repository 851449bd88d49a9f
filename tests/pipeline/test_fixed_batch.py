"""A model with its batch size written into its Reshapes, and samples that do not fill the last batch."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from gpusq_onnx.calibration.prefix import PrefixRunner
from gpusq_onnx.data.opening import open_source
from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.source import InputSpec, Source
from gpusq_onnx.graph import io
from gpusq_onnx.pipeline import manager
from gpusq_onnx.pipeline.grammar import parse
from gpusq_onnx.pipeline.run import RunOptions

BATCH, SAMPLES = 4, 6
W = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
X = np.random.default_rng(1).standard_normal((SAMPLES, 16)).astype(np.float32)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """x[4, 16] → [4, 2, 8] → Linear → ReLU → Linear → y[4, 2, 8]."""
    shapes = {"x": [BATCH, 16], "y": [BATCH, 2, 8]}
    spec = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["tokens"], name="reshape"),
        helper.make_node("MatMul", ["tokens", "w1"], ["m"], name="first"),
        helper.make_node("Relu", ["m"], ["a"], name="relu"),
        helper.make_node("Reshape", ["a", "shape"], ["b"], name="again"),
        helper.make_node("MatMul", ["b", "w2"], ["y"], name="second"),
    ]
    constants = {"shape": np.array([BATCH, 2, 8]), "w1": W, "w2": W.T.copy()}
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", [spec["x"]], [spec["y"]], initializers)
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    np.save(tmp_path / "x.npy", X)
    return path


def _source(model: Path) -> Source:
    inputs = [InputSpec(s.name, s.dtype, s.shape) for s in io.load(model).inputs()]
    return open_source(DataOptions(path=model.with_name("x.npy")), inputs)


def test_the_filling_of_the_last_batch_is_run_and_not_counted(model: Path, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    runner = PrefixRunner(io.load(model), tmp_path / "scratch")
    assert runner.start(_source(model), 1) == SAMPLES
    runner.advance(4)
    found = np.concatenate(list(runner.read("b")))
    np.testing.assert_allclose(found, np.maximum(X.reshape(SAMPLES, 2, 8) @ W, 0), rtol=1e-5, atol=1e-5)


def test_it_is_pruned_and_quantised(model: Path) -> None:
    pipeline = parse("prune24{method=sparsegpt,head=true,smallest=8},qdq-int8{only=[MatMul],smallest=8}")
    data = DataOptions(path=model.with_name("x.npy"))
    outcome = manager.run(model, model.with_name("out.onnx"), pipeline, RunOptions(data))
    assert [step.findings["images"] for step in outcome.steps] == [SAMPLES, SAMPLES]
    assert outcome.steps[0].decisions["prune"] == 2
