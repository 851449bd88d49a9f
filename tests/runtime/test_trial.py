"""What onnxruntime makes of a file, found out in another process: every outcome, and that none of them is ours."""

from contextlib import suppress
from pathlib import Path

import broken_onnxruntime
import numpy as np
import onnx
import pytest
import runtime_models
from onnx import TensorProto, helper, numpy_helper

from gpusq_onnx.runtime import trial
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
    for one in (default, plain):
        assert (one.outcome, one.said, one.went) == ("ran", "", True)
        np.testing.assert_array_equal(one.outputs["y"], np.maximum(X, 0))


def test_without_a_batch_random_inputs_are_made_where_the_shape_is_known(tmp_path: Path) -> None:
    assert [t.outputs["y"].shape for t in tried(relu(tmp_path), None)] == [(1, 3, 4)] * 2
    fixed = saved(tmp_path, helper.make_node("Relu", ["x"], ["y"]), shape=(5, 3, 4))
    assert [t.outputs["y"].shape for t in tried(fixed, None)] == [(5, 3, 4)] * 2
    free = saved(tmp_path, helper.make_node("Relu", ["x"], ["y"]), shape=("batch", 3, "width"))
    for one in tried(free, None):
        assert (one.outcome, one.went, one.outputs) == ("loaded", True, {})


def test_without_a_batch_token_ids_stay_in_their_tables(tmp_path: Path) -> None:
    assert [one.outcome for one in tried(runtime_models.tokens(tmp_path / "m.onnx"), None)] == ["ran", "ran"]


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
    pids = [float(one.outputs["y"].flat[0]) for one in (*first, *second, *third)]
    assert len(set(pids[:4])) == 1
    assert pids[4] == pids[5] != pids[0]
    assert [one.outcome for one in dead] == ["died", "died"]


PIDS = "def result(values, data, optimised):\n    return [values[0] * 0 + os.getpid()]"


def test_a_large_file_is_tried_in_all_ways_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_onnxruntime.install(monkeypatch, tmp_path, PIDS)
    monkeypatch.setattr(trial, "_LARGE", 1)
    monkeypatch.setattr(trial, "usable_cpus", lambda: 2)
    monkeypatch.setattr(trial, "free_memory", lambda: 1 << 40)
    with Trials() as trials:
        first, second = trials.try_out(relu(tmp_path), {"x": X}), trials.try_out(relu(tmp_path), {"x": X})
    pids = [[float(one.outputs["y"].flat[0]) for one in found] for found in (first, second)]
    assert [one.way for one in first] == list(WAYS)
    assert pids[0] == pids[1]
    assert len(set(pids[0])) == 2


def test_of_ways_at_once_one_may_die(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_onnxruntime.install(monkeypatch, tmp_path, "def load(data, optimised):\n    if optimised: die()")
    monkeypatch.setattr(trial, "_at_once", lambda size, ways: True)
    with Trials() as trials:
        for _ in range(2):
            assert [one.outcome for one in trials.try_out(relu(tmp_path), {"x": X})] == ["died", "ran"]


def test_what_does_not_fit_twice_is_tried_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = relu(tmp_path).stat().st_size
    assert not trial._at_once(size, 2)
    monkeypatch.setattr(trial, "_LARGE", 1)
    monkeypatch.setattr(trial, "usable_cpus", lambda: 2)
    for free, at_once in ((1 << 40, True), (7 * size, False), (0, False)):
        monkeypatch.setattr(trial, "free_memory", lambda free=free: free)
        assert trial._at_once(size, 2) is at_once
    monkeypatch.setattr(trial, "usable_cpus", lambda: 1)
    monkeypatch.setattr(trial, "free_memory", lambda: 1 << 40)
    assert not trial._at_once(size, 2)


def test_beside_other_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that fails leaves no process in the middle of a request, and the next trial has a new one."""
    broken_onnxruntime.install(monkeypatch, tmp_path, PIDS)
    path, seen = relu(tmp_path), list[float]()
    with Trials() as trials:
        for fails in (False, True, False):
            with suppress(ZeroDivisionError), trials.beside(path, {"x": X}, "default") as wait:
                _ = 1 / (not fails)
                seen.append(float(wait().outputs["y"].flat[0]))
        assert trials.try_out(path, {"x": X})[0].outputs["y"].flat[0] == seen[1]
    assert seen[0] != seen[1]


def test_too_little_memory_is_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_onnxruntime.install(monkeypatch, tmp_path, "def result(values, data, optimised):\n    raise MemoryError")
    assert [(t.outcome, "memory" in t.said) for t in tried(relu(tmp_path), {"x": X})] == [("failed", True)] * 2
