"""`apply` and `plan` on the embedded model, as a user runs them."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import IMAGES, LABELLED, call, fresh_model
from desk import names

from gpusq_onnx.errors import PassFailed
from gpusq_onnx.passes.prune import Prune24

CALIBRATION = ["--data", str(IMAGES), "--samples", "32"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return fresh_model(tmp_path)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_road_from_a_float_model_to_sparse_int8(model: Path) -> None:
    applied = call("apply", model, "--passes", "sparse-int8", *CALIBRATION)
    assert applied.code == 0, applied.err
    assert names(model.parent) == ["model.gpusq.onnx", "model.onnx"]
    written = model.with_name("model.gpusq.onnx")
    kernels = json.loads(call("inspect", written, "--json", "-").out)["kernels"]
    assert kernels["sparse INT8"] == 12
    checked = call("check", model, written, "--data", LABELLED, "--min-agreement", "0.95", "--max-top1-drop", "4")
    assert checked.code == 0, checked.err


@pytest.mark.long
def test_the_report_and_its_digest(model: Path, tmp_path: Path) -> None:
    report = tmp_path / "out.json"
    applied = call("apply", model, "--passes", "prune24,qdq-int8", *CALIBRATION, "--seed", "7", "--report", report)
    assert applied.code == 0, applied.err
    written = json.loads(report.read_text())
    assert [step["name"] for step in written["steps"]] == ["prune24", "qdq-int8"]
    assert written["output"]["sha256"] == digest(model.with_name("model.gpusq.onnx"))
    assert written["data"]["options"]["samples"] == 32
    assert written["seed"] == 7
    assert all(row["reason"] for step in written["steps"] for row in step["rows"])
    text = report.with_suffix(".md").read_text()
    assert "## prune24" in text
    assert "| skip" in text


@pytest.mark.long
def test_plan_says_what_apply_then_does(model: Path) -> None:
    words = [model, "--passes", "prune24,qdq-int8", *CALIBRATION, "--json", "-"]
    planned = json.loads(call("plan", *words).out)
    assert names(model.parent) == ["model.onnx"]
    assert planned["output"] is None
    applied = json.loads(call("apply", *words).out)
    assert planned["pipeline"] == applied["pipeline"]
    for before, after in zip(planned["steps"], applied["steps"], strict=True):
        assert before["rows"] == after["rows"]


def test_plan_prints_every_tensor_with_its_reason(model: Path) -> None:
    words = [model, "--passes", "prune24"]
    planned = json.loads(call("plan", *words, "--json", "-").out)
    printed = call("plan", *words, "--full").out
    for row in planned["steps"][0]["rows"]:
        line = next(line for line in printed.splitlines() if line.startswith(f"{row['tensor']} "))
        assert row["reason"] in line
        assert row["decision"] in line
    assert "MACs" in printed
    assert "bit operations" in printed


def test_a_recipe_is_the_same_pipeline(model: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[[pass]]\nname = "prune24"\nmethod = "magnitude"\nonly = ["fc1", "fc2"]\n')
    one, two, three = (tmp_path / f"{name}.onnx" for name in ("one", "two", "three"))
    assert call("apply", model, "--recipe", recipe, "-o", one).code == 0
    assert call("apply", model, "-p", "prune24{method=magnitude,only=[fc1;fc2]}", "-o", two).code == 0
    overrides = ["--set", "prune24.method=magnitude", "--set", "prune24.only=[fc1;fc2]"]
    assert call("apply", model, "-p", "prune24", *overrides, "-o", three).code == 0
    assert digest(one) == digest(two) == digest(three)


@pytest.mark.long
def test_the_same_command_twice_gives_the_same_bytes(model: Path, tmp_path: Path) -> None:
    files = [tmp_path / "first.onnx", tmp_path / "second.onnx"]
    for file in files:
        assert call("apply", model, "-p", "sparse-int8", *CALIBRATION, "-o", file, "--quiet").code == 0
    assert digest(files[0]) == digest(files[1])


def test_its_own_output_is_refused(model: Path, tmp_path: Path) -> None:
    first = tmp_path / "first.onnx"
    assert call("apply", model, "-p", "qdq-int8", *CALIBRATION, "-o", first).code == 0
    again = call("apply", first, "-p", "qdq-int8", *CALIBRATION, "-o", tmp_path / "second.onnx")
    assert again.code == 3
    assert "quantised already" in again.err
    assert not (tmp_path / "second.onnx").exists()


def test_without_data_there_is_a_warning_and_a_mark(model: Path) -> None:
    applied = call("apply", model, "-p", "qdq-int8", "--samples", "4", "--quiet")
    assert (applied.code, applied.out) == (0, "")
    assert "warning: " in applied.err
    assert "synthetic" in applied.err
    metadata = {entry.key: entry.value for entry in onnx.load(model.with_name("model.gpusq.onnx")).metadata_props}
    assert any("synthetic" in value for value in metadata.values())


def test_json_is_alone_on_stdout(model: Path) -> None:
    applied = call("apply", model, "-p", "prune24", "--json", "-")
    assert json.loads(applied.out)["pipeline"] == "prune24"


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["-p", "prune24", "-o", "{model}"], 2, "output"),
        (["-p", "prune24", "-o", "{model}/inside/model.onnx"], 2, "folder"),
        (["-p", "prune24", "--report", "{model}/inside/report.json"], 2, "folder"),
        (["-p", "qdq-int8", "--data", "{folder}/no_such_folder"], 2, "no_such_folder"),
        (["-p", "qdq-int8", "--data-options", "{folder}/no.toml"], 2, "no.toml"),
        (["-p", "qdq-int8", "--layout", "CHWN", "--data", "{images}"], 2, "layout"),
        (["-p", "qdq-int8", "--data", "{empty}"], 3, "empty"),
        (["-p", "qdq-int8", "--data", "{wrong}"], 3, "pixel_values"),
        (["-p", "prune24{only=[fc3]}"], 3, "'fc3' matches no weight"),
        (["-p", "prune24{only=[patch_embed]}"], 3, "no weight can be pruned"),
    ],
)
def test_bad_input_leaves_nothing(model: Path, tmp_path: Path, words: list[str], code: int, says: str) -> None:
    empty, wrong = tmp_path / "empty", tmp_path / "wrong.npy"
    empty.mkdir()
    np.save(wrong, np.zeros((2, 3, 8, 8), np.float32))
    places = {"model": model, "folder": model.parent, "images": IMAGES, "empty": empty, "wrong": wrong}
    before = digest(model)
    outcome = call("apply", model, *[word.format(**places) if word[0] == "{" else word for word in words])
    assert (outcome.code, outcome.out) == (code, ""), outcome.err
    assert says in outcome.err
    assert names(model.parent) == ["model.onnx"]
    assert digest(model) == before


def test_a_pass_that_breaks_its_promise_exits_4(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise PassFailed("the pass wrote a NaN")

    monkeypatch.setattr(Prune24, "apply", broken)
    outcome = call("apply", model, "-p", "prune24")
    assert outcome.code == 4
    assert outcome.err.startswith("pass failed: ")
    assert not model.with_name("model.gpusq.onnx").exists()


def test_an_interrupt_in_the_middle_leaves_nothing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gpusq_onnx.graph.io.write_model", interrupted)
    outcome = call("apply", model, "-p", "prune24")
    assert outcome.code == 130
    assert names(model.parent) == ["model.onnx"]


def test_a_full_disk_leaves_nothing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gpusq_onnx.graph.io.write_model", full)
    outcome = call("apply", model, "-p", "prune24")
    assert outcome.code == 5
    assert "No space left" in outcome.err
    assert names(model.parent) == ["model.onnx"]


def test_under_torchrun_only_the_first_process_writes_and_speaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fresh_model(tmp_path)
    words = ["apply", model, "-p", "prune24", "--report", model.with_name("report.json"), "--json", "-"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    silent = call(*words)
    assert (silent.code, silent.out, silent.err) == (0, "", "")
    assert [path.name for path in model.parent.iterdir()] == ["model.onnx"]
    monkeypatch.setenv("RANK", "0")
    assert call(*words).out
    assert len(list(model.parent.iterdir())) == 4


def test_a_plan_shows_the_learning_passes_without_torch(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    shown = call("plan", model, "-p", "sparse-int8", "--finetune", "3", "--set", "distill.batch=8")
    assert shown.code == 0, shown.err
    assert "".join(shown.out.split()).startswith(
        f"{model}:prune24{{method=sparsegpt}},distill{{batch=8,epochs=3}},"
        "qdq-int8{profile=sparse-int8},qat{epochs=3}"
    )
    assert "distill: 14 train" in shown.out
