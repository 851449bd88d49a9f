"""distill and qat on graphs whose outputs or inputs are unlike a classifier's: trained, or refused with the reason."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

pytest.importorskip("torch", reason="needs the extra `train`")
pytest.importorskip("accelerate", reason="needs the extra `train`")

from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.errors import NothingMatched, UnsupportedDataError, UnsupportedModelError
from gpusq_onnx.graph import io
from gpusq_onnx.graph.model import values_of
from gpusq_onnx.pipeline import manager
from gpusq_onnx.pipeline.base import PlanRow
from gpusq_onnx.pipeline.grammar import parse
from gpusq_onnx.pipeline.outcome import Outcome
from gpusq_onnx.pipeline.run import RunOptions

SIDE = 32
PRUNE = f"prune24{{method=magnitude smallest={SIDE} head=true}}"
DISTILL = "distill{steps=2 batch=4 lr=1e-2 precision=float32 device=cpu}"
QAT = "qat{steps=2 batch=4 lr=1e-2 precision=float32 device=cpu}"


def _node(op: str, inputs: str, outputs: str, **attributes: object) -> NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), name=outputs.split()[0], **attributes)


FIRST = [_node("MatMul", "x w1", "h"), _node("Relu", "h", "f")]
LAST = [_node("MatMul", "f w2", "y")]


def _model(
    folder: Path, nodes: Sequence[NodeProto], outputs: dict[str, list[int | str]], batch: int | str = "batch"
) -> Path:
    """A file with x[batch, SIDE] and square weights w1, w2, and data for it."""
    rng = np.random.default_rng(0)
    constants = {name: rng.standard_normal((SIDE, SIDE)).astype(np.float32) for name in ("w1", "w2")}
    constants |= {"zero": np.array([0]), "axis": np.array([1]), "number": np.array(0, np.float32)}
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, SIDE])
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()]
    stored = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(list(nodes), "g", [x], made, stored)
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    np.save(folder / "x.npy", rng.standard_normal((6, SIDE)).astype(np.float32))
    return path


def _run(path: Path, passes: str, allow_noop: bool = False) -> Outcome:
    options = RunOptions(DataOptions(path=path.with_name("x.npy")), allow_noop=allow_noop)
    return manager.run(path, path.with_name("out.onnx"), parse(passes), options)


def _moved(outcome: Outcome, path: Path) -> set[str]:
    """The weights that a pass for training moved."""
    before, after = ({c.name: values_of(c) for c in io.load(p).constants()} for p in (path, path.with_name("out.onnx")))
    kept = {name: values != 0 for name, values in after.items()}
    return {name for name in ("w1", "w2") if not np.array_equal(before[name][kept[name]], after[name][kept[name]])}


def _rows(outcome: Outcome) -> dict[str, PlanRow]:
    return {row.tensor: row for row in outcome.steps[-1].rows}


NUMBER = _node("ReduceSum", "y axis", "score", keepdims=0)
COLUMN = _node("ReduceSum", "y axis", "score", keepdims=1)
SCALAR = _node("ReduceMean", "y", "score", keepdims=0)


@pytest.mark.parametrize("batch", ["batch", 4])
@pytest.mark.parametrize(("end", "rank"), [(NUMBER, 1), (COLUMN, 2), (SCALAR, 0)], ids=["[B]", "[B, 1]", "[]"])
def test_an_output_of_single_numbers_is_trained(end: NodeProto, rank: int, batch: int | str, tmp_path: Path) -> None:
    shape: list[int | str] = [batch, 1][:rank]
    path = _model(tmp_path, [*FIRST, *LAST, end], {"score": shape}, batch)
    outcome = _run(path, f"{PRUNE},{DISTILL}")
    assert _moved(outcome, path) == {"w1", "w2"}
    assert outcome.steps[-1].findings["soft"]["before"] > 0


def test_so_is_one_of_a_quantised_model(tmp_path: Path) -> None:
    path = _model(tmp_path, [*FIRST, *LAST, NUMBER], {"score": ["batch"]})
    outcome = _run(path, f"qdq-int8{{smallest={SIDE} head=true}},{QAT}")
    assert outcome.steps[-1].findings["learned"] > 0


def test_a_softmax_at_the_end_changes_no_soft_loss(tmp_path: Path) -> None:
    scaled = [_node("Constant", "", "share", value_float=0.03), _node("Mul", "y share", "z")]
    ends = {"z": [], "p": [_node("Softmax", "z", "p")], "log": [_node("LogSoftmax", "z", "log")]}
    found = {}
    for name, end in ends.items():
        (folder := tmp_path / name).mkdir()
        path = _model(folder, [*FIRST, *LAST, *scaled, *end], {name: ["batch", SIDE]})
        found[name] = _run(path, f"{PRUNE},{DISTILL}").steps[-1].findings["soft"]
    assert found["p"] == pytest.approx(found["z"], rel=1e-3)
    assert found["log"] == pytest.approx(found["z"], rel=1e-3)
    assert found["z"]["before"] > 0.01


def test_an_output_without_elements_spoils_no_loss(tmp_path: Path) -> None:
    empty = _node("Slice", "f zero zero axis", "none")
    path = _model(tmp_path, [*FIRST, *LAST, empty], {"none": ["batch", 0], "y": ["batch", SIDE]})
    outcome = _run(path, f"{PRUNE},{DISTILL}")
    assert np.isfinite([row["loss"] for row in outcome.steps[-1].findings["curve"]]).all()
    assert _moved(outcome, path) == {"w1", "w2"}


def _branches(read: str) -> list[NodeProto]:
    """An If that depends on data: y is `read`, doubled in either branch."""
    bodies = {
        f"{name}_branch": helper.make_graph(
            [_node("Add", f"{read} {read}", name)], name, [], [helper.make_tensor_value_info(name, 1, None)]
        )
        for name in ("then", "else")
    }
    asked = [_node("ReduceMax", read, "most", keepdims=0), _node("Greater", "most number", "positive")]
    return [*asked, helper.make_node("If", ["positive"], ["chosen"], name="if", **bodies)]


def test_the_plan_says_which_weights_lie_after_what_is_not_trained(tmp_path: Path) -> None:
    path = _model(tmp_path, [*FIRST, *_branches("f"), _node("MatMul", "chosen w2", "y")], {"y": ["batch", SIDE]})
    outcome = _run(path, f"{PRUNE},{DISTILL}")
    rows = _rows(outcome)
    assert [rows[name].decision for name in ("w1", "w2")] == ["train", "skip"]
    assert rows["w2"].reason == "it comes after node 'if' (If), which is not trained through"
    assert _moved(outcome, path) == {"w1"}
    assert sum("2:4" in fact for fact in outcome.steps[-1].facts) == 2, "what is not trained is as sparse as it was"


@pytest.mark.parametrize("passes", [f"{PRUNE.replace('head=true', 'head=true only=w2')},{DISTILL}", DISTILL])
def test_where_nothing_that_was_pruned_is_trained_it_is_an_error(passes: str, tmp_path: Path) -> None:
    nodes = [*FIRST, *_branches("f"), _node("MatMul", "chosen w2", "y")]
    if passes == DISTILL:
        nodes = [*_branches("x"), _node("MatMul", "chosen w1", "h"), _node("MatMul", "h w2", "y")]
        passes = f"{PRUNE},{DISTILL}"
    path = _model(tmp_path, nodes, {"y": ["batch", SIDE]})
    with pytest.raises(UnsupportedModelError, match=r"train none of the weights|model cannot be trained") as caught:
        _run(path, passes, allow_noop=True)
    assert "if" in f"{caught.value.details['where']} {caught.value.details['found']}"
    assert not path.with_name("out.onnx").exists()


def test_a_weight_that_the_graph_returns_stays(tmp_path: Path) -> None:
    path = _model(tmp_path, [*FIRST, *LAST], {"y": ["batch", SIDE], "w1": [SIDE, SIDE]})
    for passes in (f"{PRUNE},{DISTILL}", f"qdq-int8{{smallest={SIDE} head=true}},{QAT}"):
        outcome = _run(path, passes)
        row = _rows(outcome)["w1"]
        assert (row.decision, row.reason) == (
            "skip",
            "also read by the graph's caller: changing it would change that, too",
        )
        assert "w1" not in _moved(outcome, path)


def test_a_weight_of_zeros_follows_no_pattern_by_name(tmp_path: Path) -> None:
    path = _model(tmp_path, [*FIRST, *LAST], {"y": ["batch", SIDE]})
    proto = onnx.load(path)
    (w1,) = (stored for stored in proto.graph.initializer if stored.name == "w1")
    w1.CopyFrom(numpy_helper.from_array(np.zeros((SIDE, SIDE), np.float32), "w1"))
    onnx.save(proto, path)
    planned = manager.plan(path, parse(DISTILL.replace("{", f"{{teacher={path} ")), RunOptions(DataOptions()))
    reasons = {row.tensor: row.reason for row in planned.steps[-1].rows}
    assert reasons["w1"] == "all zero, and stays so: zeros are written again after every step"
    assert reasons["w2"] == "dense"


def test_a_model_without_a_batch_axis_is_refused(tmp_path: Path) -> None:
    """x[3, 32] are three rows of one sample: the output knows nothing of a three."""
    ends = [*FIRST, *LAST, _node("ReduceMean", "y zero", "logits", keepdims=0)]
    path = _model(tmp_path, ends, {"logits": [SIDE]}, batch=3)
    with pytest.raises(UnsupportedModelError, match="has no batch axis") as caught:
        _run(path, f"{PRUNE},{DISTILL}")
    assert caught.value.details["next"] == "export it for a batch of one image: [1, 3, 32]"
    np.save(tmp_path / "x.npy", np.zeros((6, 3, SIDE), np.float32))
    with pytest.raises(UnsupportedDataError, match="does not fit") as refused:
        _run(path, PRUNE)
    assert "has no batch axis" in str(refused.value.details["next"])


def test_training_that_moves_nothing_says_so(tmp_path: Path) -> None:
    path = _model(tmp_path, [*FIRST, *LAST, NUMBER], {"score": ["batch"]})
    with pytest.raises(NothingMatched, match="changed nothing") as caught:
        _run(path, DISTILL.replace("{", f"{{teacher={path} "))
    assert "what is trained is as the teacher has it" in str(caught.value.details["found"])
