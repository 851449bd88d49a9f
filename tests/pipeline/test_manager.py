"""The manager: a plan is what a run does, also after a pass that changes what there is to see; provenance adds up."""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.pipeline import manager
from gpusq_onnx.pipeline.grammar import parse
from gpusq_onnx.pipeline.run import RunOptions

ASSETS = Path(__file__).parents[1] / "assets"


def _scaled_weight(path: Path) -> Path:
    """MatMul(x, W * s): a weight that only constant folding makes visible."""
    rng = np.random.default_rng(0)
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["w", "s"], ["ws"]),
            helper.make_node("MatMul", ["x", "ws"], ["h"]),
            helper.make_node("Relu", ["h"], ["y"]),
        ],
        "scaled",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [
            numpy_helper.from_array(rng.standard_normal((8, 4)).astype(np.float32), "w"),
            numpy_helper.from_array(np.float32(2.0), "s"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_a_plan_sees_the_weights_that_fold_makes_visible(tmp_path: Path) -> None:
    model = _scaled_weight(tmp_path / "model.onnx")
    pipeline = parse("fold,prune24{head=true,smallest=4}")
    planned = manager.plan(model, pipeline, RunOptions(DataOptions()))
    applied = manager.run(model, tmp_path / "out.onnx", pipeline, RunOptions(DataOptions()))
    assert [step.rows for step in planned.steps] == [step.rows for step in applied.steps]
    assert [row.decision for row in planned.steps[1].rows] == ["prune"]
    assert planned.after.total["dense_macs"] == applied.after.total["dense_macs"] == 32
    (tensor,) = onnx.load(tmp_path / "out.onnx").graph.initializer
    assert (np.count_nonzero(numpy_helper.to_array(tensor).reshape(2, 4, 4), axis=1) == 2).all()


def test_costs_are_told_for_each_site_and_in_all(tmp_path: Path) -> None:
    model = ASSETS / "digits_vit.onnx"
    found = manager.run(model, tmp_path / "out.onnx", parse("prune24"), RunOptions(DataOptions()))
    pruned = {row.tensor for row in found.steps[0].rows if not row.skipped}
    for name, after in found.after.sites.items():
        before = found.before.sites[name]
        assert after["dense_macs"] == before["dense_macs"] > 0
        assert after["bit_operations"] == before["bit_operations"] / (2 if name in pruned else 1)
    assert found.before.total["dense_macs"] == sum(site["dense_macs"] for site in found.before.sites.values())
    assert found.architecture.blocks == 3 and len(found.architecture.feature_maps) == 1


def test_a_model_pruned_before_counts_as_sparse(tmp_path: Path) -> None:
    manager.run(ASSETS / "digits_vit.onnx", tmp_path / "pruned.onnx", parse("prune24"), RunOptions(DataOptions()))
    data = DataOptions(path=ASSETS / "digits_train.npz", samples=8)
    found = manager.run(tmp_path / "pruned.onnx", tmp_path / "out.onnx", parse("qdq-int8"), RunOptions(data))
    assert found.before.total["packed_bytes"] < 0.7 * 4 * found.before.total["parameters"]
    entries = {e.key: e.value for e in onnx.load(tmp_path / "out.onnx").metadata_props}
    history = json.loads(entries["pkg.gpusq_onnx.history"])
    assert [entry["pipeline"] for entry in history] == ["prune24", "qdq-int8"]
    assert entries["pkg.gpusq_onnx.data"] == "arrays" and entries["pkg.gpusq_onnx.pipeline"] == "qdq-int8"
