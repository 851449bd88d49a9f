"""The number of threads decides nothing: same command, same input, same bytes."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from threadpoolctl import threadpool_info, threadpool_limits

from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.pipeline import manager, parallel
from gpusq_onnx.pipeline.grammar import parse
from gpusq_onnx.pipeline.run import RunOptions

WIDTH = 640  # more than a tile of the Gram matrix, and products that BLAS divides among threads


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """x[N, 32, WIDTH] -> Linear -> ReLU -> Linear, with biases; and 8 samples beside it."""
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) / 25 for name in ("w1", "w2")}
    biases = {name: rng.standard_normal(WIDTH).astype(np.float32) for name in ("b1", "b2")}
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["m1"], name="first"),
        helper.make_node("Add", ["m1", "b1"], ["a1"], name="first_bias"),
        helper.make_node("Relu", ["a1"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "w2"], ["m2"], name="second"),
        helper.make_node("Add", ["m2", "b2"], ["y"], name="second_bias"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 32, WIDTH]) for name in ("x", "y")]
    initializers = [numpy_helper.from_array(value, name) for name, value in (weights | biases).items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], initializers)
    path = tmp_path_factory.mktemp("threads") / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    np.save(path.with_name("x.npy"), rng.standard_normal((8, 32, WIDTH)).astype(np.float32))
    return path


def _bytes(model: Path, pipeline: str, threads: int) -> bytes:
    output = model.with_name(f"out{threads}.onnx")
    data = DataOptions(path=model.with_name("x.npy"))
    with threadpool_limits(threads, user_api="blas"):  # what OMP_NUM_THREADS sets for numpy
        manager.run(model, output, parse(pipeline), RunOptions(data))
    return output.read_bytes()


@pytest.mark.long
@pytest.mark.parametrize(
    "pipeline",
    [
        "prune24{method=sparsegpt,only=[MatMul]}",
        "qdq-int8{only=[MatMul]}",
        "qdq{scheme=w4a8,only=[MatMul]}",
        "prune24{only=[MatMul]},fp16",
    ],
)
def test_the_bytes_are_the_same_for_any_number_of_threads(model: Path, pipeline: str) -> None:
    assert _bytes(model, pipeline, 1) == _bytes(model, pipeline, 2) == _bytes(model, pipeline, 3)


def test_the_parts_of_a_job_are_the_same_however_many_share_it(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = "prune24{method=sparsegpt,only=[MatMul]}"
    expected = _bytes(model, pipeline, 1)
    monkeypatch.setattr(parallel, "usable_cpus", lambda: 5)
    assert _bytes(model, pipeline, 1) == expected


def test_callers_keep_their_threads() -> None:
    with threadpool_limits(2, user_api="blas"):
        before = threadpool_info()
        with parallel.one_blas_thread():
            found = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
        assert set(found) <= {1}
        assert threadpool_info() == before
