"""What hands expect: a dry run, stdout, no file of somebody else's lost, and what a wrong kind of file is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import LABELLED, MODEL, ROOT, call, fresh_model

from gpusq_onnx.cli import progress

PASSES = ["-p", "prune24{method=magnitude}"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return fresh_model(tmp_path)


def test_a_dry_run_is_a_plan_and_writes_nothing(model: Path) -> None:
    dry = call("apply", *PASSES, "--dry-run", "-o", model.with_name("small.onnx"), model)
    assert dry == call("plan", *PASSES, model)
    assert dry.code == 0 and [path.name for path in model.parent.iterdir()] == ["model.onnx"]


@pytest.mark.long
def test_a_dash_writes_the_model_to_stdout(model: Path, tmp_path: Path) -> None:
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from gpusq_onnx.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "apply", *PASSES, "-o", "-", str(model)]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, check=True)
    assert call("apply", *PASSES, "-o", tmp_path / "small.onnx", model).code == 0
    assert done.stdout == (tmp_path / "small.onnx").read_bytes()
    assert not (tmp_path / "-").exists()


def test_two_things_do_not_go_to_stdout(model: Path) -> None:
    outcome = call("apply", *PASSES, "-o", "-", "--json", "-", model)
    assert (outcome.code, outcome.out) == (2, "")


@pytest.mark.long
@pytest.mark.parametrize("content", [b"a diary", MODEL.read_bytes()], ids=["text", "model"])
def test_a_file_of_somebody_else_is_not_written_over(model: Path, content: bytes) -> None:
    target = model.with_name("small.onnx")
    target.write_bytes(content)
    refused = call("apply", *PASSES, "-o", target, model)
    assert refused.code == 2 and "did not write it" in refused.err and "--force" in refused.err
    assert target.read_bytes() == content
    assert call("apply", *PASSES, "-o", target, "--force", model).code == 0
    assert call("apply", *PASSES, "-o", target, model).code == 0, "our own output is made anew"


@pytest.mark.long
def test_report_says_where_the_page_is(model: Path) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    report = model.with_name("r.json")
    assert call("plan", *PASSES, "--report", report, model).code == 0
    outcome = call("report", report)
    assert outcome.out.strip() == str(report.with_suffix(".html"))


def test_a_model_for_a_report_and_for_a_packed_file_is_named_as_what_it_is(model: Path) -> None:
    pytest.importorskip("jinja2")
    drawn = call("report", model)
    assert drawn.code == 2 and "a model is no report" in drawn.err
    unpacked = call("unpack", model)
    assert unpacked.code == 3 and "was not packed" in unpacked.err


def test_progress_says_which_step_it_is(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY", 0)
    outcome = call("apply", "-p", "prune24{method=magnitude},qdq-int8", "--samples", "4", model)
    assert "step 1 of 2, prune24: pruning" in outcome.err and "step 2 of 2, qdq-int8: " in outcome.err


def test_folders_above_an_output_are_made_and_go_again_where_nothing_comes(model: Path, tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b"
    failed = call("apply", "-p", "prune24{only=[nothing]}", "-o", deep / "small.onnx", model)
    assert failed.code == 3 and not deep.parent.exists()
    done = call("apply", *PASSES, "-o", deep / "small.onnx", "--report", tmp_path / "r" / "r.json", model)
    assert done.code == 0, done.err
    assert sorted(path.name for path in deep.iterdir()) == ["small.onnx"]
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == ["r.json", "r.md"]


def test_a_file_in_the_way_of_a_folder_is_named(model: Path) -> None:
    refused = call("apply", *PASSES, "-o", model / "small.onnx", model)
    assert refused.code == 2 and "no folder can be made" in refused.err


@pytest.mark.parametrize("before", [True, False], ids=["before the verb", "after it"])
def test_options_for_any_verb_stand_before_or_after_it(model: Path, tmp_path: Path, before: bool) -> None:
    log = tmp_path / "logs" / "log.txt"
    anywhere = ["-v", "--debug", "--log-file", log]
    for words in (["inspect", model], ["passes", "list"]):
        outcome = call(*anywhere, *words) if before else call(*words, *anywhere)
        assert outcome.code == 0, outcome.err
    assert "inspecting weights: " in call("-v", "inspect", model).err
    missing = ["inspect", model.with_name("none.onnx")]
    assert "Traceback" in (call(*anywhere, *missing) if before else call(*missing, *anywhere)).err
    text = log.read_text()
    first, second, *_ = text.splitlines()
    assert first.startswith("# gpusq-onnx ") and " gpusq-onnx " in second and "inspect" in second
    assert text.count(first) == 1, "a second run appends to the first one's"
    assert "inspecting weights: " in text and "ended with exit code 0" in text
    assert "no such model file" in text and "Traceback" in text and text.endswith("ended with exit code 2\n")


def test_a_log_that_cannot_be_written_is_a_usage_error(model: Path) -> None:
    refused = call("inspect", model, "--log-file", model / "log.txt")
    assert refused.code == 2 and "the log" in refused.err


def test_a_log_is_never_appended_to_a_file_of_another_kind(model: Path) -> None:
    before = model.read_bytes()
    refused = call("inspect", model, "--log-file", model, "--force")
    assert refused.code == 2 and "no log of gpusq-onnx" in refused.err
    assert model.read_bytes() == before


@pytest.mark.long
def test_more_images_than_calibration_needs_are_left_alone(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpusq_onnx.pipeline import run

    monkeypatch.setattr(run, "CALIBRATED", 4)
    report = model.with_name("r.json")
    images = [*PASSES[:1], "qdq-int8", "--data", LABELLED, "--report", report, "-o", model.with_name("s.onnx"), model]
    for more, used in (([], 4), (["--samples", "6"], 6)):
        assert call("apply", *images, *more).code == 0
        assert json.loads(report.read_text())["data"]["samples"] == used


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_log_that_is_a_pipe_without_a_reader_is_refused(tmp_path: Path, model: Path) -> None:
    os.mkfifo(tmp_path / "log")
    refused = call("inspect", model, "--log-file", tmp_path / "log")
    assert refused.code == 2 and "the log cannot be written" in refused.err
