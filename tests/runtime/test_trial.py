"""What onnxruntime makes of a file, found out in another process: every outcome, and that none of them is ours."""

from pathlib import Path

import broken_onnxruntime
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from gpusq_onnx.runtime.ort import Feed
from gpusq_onnx.runtime.trial import WAYS, Trial, Trials

X = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)


def saved(folder: Path, *nodes: onnx.NodeProto, shape: tuple[object, ...] = ("batch", 3, 4)) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array([7, 7]), "shape")],
    )
    path = folder / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def relu(folder: Path) -> Path:
    return saved(folder, helper.make_node("Relu", ["x"], ["y"], name="plain"))


def tried(path: Path, feed: Feed | None) -> list[Trial]:
    with Trials() as trials:
        return trials.try_out(path, feed)


def test_both_ways_run_the_batch(tmp_path: Path) -> None:
    default, plain = tried(relu(tmp_path), {"x": X.astype(np.float64)})
    assert (default.way, plain.way) == WAYS
    for trial in (default, plain):
        assert (trial.outcome, trial.said, trial.went) == ("ran", "", True)
        np.testing.assert_array_equal(trial.outputs["y"], np.maximum(X, 0))


def test_without_a_batch_random_inputs_are_made_where_the_shape_is_known(tmp_path: Path) -> None:
    assert [t.outputs["y"].shape for t in tried(relu(tmp_path), None)] == [(1, 3, 4)] * 2
    fixed = saved(tmp_path, helper.make_node("Relu", ["x"], ["y"]), shape=(5, 3, 4))
    assert [t.outputs["y"].shape for t in tried(fixed, None)] == [(5, 3, 4)] * 2
    free = saved(tmp_path, helper.make_node("Relu", ["x"], ["y"]), shape=("batch", 3, "width"))
    for trial in tried(free, None):
        assert (trial.outcome, trial.went, trial.outputs) == ("loaded", True, {})


def test_a_refusal_and_a_failure_say_why(tmp_path: Path) -> None:
    refused, _ = tried(saved(tmp_path, helper.make_node("Strange", ["x"], ["y"])), {"x": X})
    assert (refused.outcome, refused.went) == ("refused", False)
    assert str(refused).startswith("a session with onnxruntime's defaults refuses to load it: ")
    assert "Strange" in refused.said
    _, failed = tried(saved(tmp_path, helper.make_node("Reshape", ["x", "shape"], ["y"])), {"x": X})
    assert failed.outcome == "failed"
    assert "a session without optimisations fails to run it: " in str(failed)
    assert "Reshape" in failed.said


@pytest.mark.parametrize(
    ("code", "when"),
    [
        ("def load(data, optimised):\n    if optimised: die()", "while loading it"),
        ("def result(values, data, optimised):\n    if optimised: die()\n    return values", "while running it"),
    ],
)
def test_a_crash_ends_the_other_process_and_the_next_way_is_tried(
    code: str, when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_onnxruntime.install(monkeypatch, tmp_path, code)
    dead, alive = tried(relu(tmp_path), {"x": X})
    assert (dead.way, dead.outcome, dead.outputs) == ("default", "died", {})
    assert dead.said == f"it crashed with SIGSEGV {when}"
    assert (alive.way, alive.outcome) == ("unoptimised", "ran")


def test_one_process_tries_all_models_until_it_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "def result(values, data, optimised):\n    if b'fatal' in data: die()\n    return [values[0] * 0 + os.getpid()]"
    )
    broken_onnxruntime.install(monkeypatch, tmp_path, code)
    (tmp_path / "fatal").mkdir()
    good, fatal = relu(tmp_path), saved(tmp_path / "fatal", helper.make_node("Relu", ["x"], ["y"], name="fatal"))
    with Trials() as trials:
        trials.start()
        first, second = trials.try_out(good, {"x": X}), trials.try_out(good, {"x": X})
        dead = trials.try_out(fatal, {"x": X})
        third = trials.try_out(good, {"x": X})
    pids = [float(trial.outputs["y"].flat[0]) for trial in (*first, *second, *third)]
    assert len(set(pids[:4])) == 1
    assert pids[4] == pids[5] != pids[0]
    assert [trial.outcome for trial in dead] == ["died", "died"]


def test_too_little_memory_is_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_onnxruntime.install(monkeypatch, tmp_path, "def result(values, data, optimised):\n    raise MemoryError")
    assert [(t.outcome, "memory" in t.said) for t in tried(relu(tmp_path), {"x": X})] == [("failed", True)] * 2
