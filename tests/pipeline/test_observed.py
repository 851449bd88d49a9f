"""Shapes that inference loses are seen in a run, and unknown tokens are never called too many."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.graph import io
from gpusq_onnx.graph.structure import analyse
from gpusq_onnx.pipeline import manager
from gpusq_onnx.pipeline.grammar import parse
from gpusq_onnx.pipeline.run import RunOptions
from gpusq_onnx.runtime.observed import observe
from gpusq_onnx.runtime.trial import Trials
from gpusq_onnx.workflows.baselines import given_entry

D, TOKENS = 32, 12


def _model(path: Path, batch: int | str = "batch", tokens: int | str = TOKENS) -> Path:
    """Attention over the tokens that Compress leaves: what it leaves is known to nobody before the run."""
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((D, D)).astype(np.float32) / 6 for name in ("wq", "wk", "wv", "wo")}
    constants = {**weights, "keep": np.ones(TOKENS, bool)}
    nodes = [
        helper.make_node("Compress", ["x", "keep"], ["t"], axis=1),
        *(helper.make_node("MatMul", ["t", f"w{letter}"], [letter]) for letter in "qkv"),
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "v"], ["c"]),
        helper.make_node("MatMul", ["c", "wo"], ["o"]),
        helper.make_node("Add", ["x", "o"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, tokens, D])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, tokens, D])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    np.save(path.with_name("x.npy"), rng.standard_normal((2, TOKENS, D)).astype(np.float32))
    return path


@pytest.mark.parametrize("data", [False, True])
def test_a_plan_knows_the_tokens_that_a_run_shows(tmp_path: Path, data: bool):
    model = _model(tmp_path / "m.onnx")
    assert [a.tokens for a in analyse(io.load(model)).attentions] == [None]
    options = DataOptions(path=tmp_path / "x.npy") if data else DataOptions()
    planned = manager.plan(model, parse("qdq-int8"), RunOptions(options))
    assert planned.architecture.attention_tokens == (TOKENS,)
    rows = {row.role: row for row in planned.steps[-1].rows if row.role in ("Q", "K", "softmax", "V")}
    assert len(rows) == 4 and not any(row.skipped for row in rows.values())
    assert planned.before.sites["wq"]["dense_macs"] == D * D * TOKENS


def test_apply_does_what_the_plan_says(tmp_path: Path):
    model, options = _model(tmp_path / "m.onnx"), DataOptions(path=tmp_path / "x.npy")
    planned = manager.plan(model, parse("qdq-int8"), RunOptions(options))
    applied = manager.run(model, tmp_path / "out.onnx", parse("qdq-int8"), RunOptions(options))
    assert [step.rows for step in planned.steps] == [step.rows for step in applied.steps]


def test_a_benchmark_counts_the_tokens_that_a_run_shows(tmp_path: Path):
    entry = given_entry(_model(tmp_path / "m.onnx"))
    assert entry.flops == pytest.approx(2 * 4 * TOKENS * D * D / 1e9)


def test_of_an_open_size_without_data_the_tokens_are_unknown_and_not_too_many(tmp_path: Path):
    model = io.load(_model(tmp_path / "m.onnx", tokens="tokens"))
    structure = analyse(model)
    assert observe(model, structure, None, Trials()) is structure
    planned = manager.plan(tmp_path / "m.onnx", parse("qdq-int8"), RunOptions(DataOptions()))
    reasons = {row.reason for row in planned.steps[-1].rows if row.role in ("Q", "K", "softmax", "V")}
    assert len(reasons) == 1 and "not known" in reasons.pop()
