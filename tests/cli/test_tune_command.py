"""`tune` and `plan --sensitivity` as commands: exit codes, and what is written."""

import json
from pathlib import Path

import pytest
from command_line import IMAGES, call, fresh_model
from desk import unchanged

FEW = ("--data", IMAGES, "--samples", "32", "--images", "8", "--exact", "0", "--forms", "int8", "--measurements", "1")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test finds what another has kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.long
def test_a_recipe_that_apply_takes(tmp_path: Path) -> None:
    model = fresh_model(tmp_path)
    recipe, report = model.with_name("recipe.toml"), model.with_name("report.json")
    done = call("tune", model, *FEW, "--budget", "agreement>=0.5", "-o", recipe, "--report", report)
    assert done.code == 0, done.err
    assert "[[pass]]" in recipe.read_text() and "uniform int8" in done.out
    assert json.loads(report.read_text())["met"] is True and report.with_suffix(".md").exists()
    assert call("apply", model, "--recipe", recipe, "--data", IMAGES, "--samples", "8", "-q").code == 0


@pytest.mark.long
def test_a_missed_budget_is_exit_code_1_and_leaves_nothing_but_the_analysis(tmp_path: Path) -> None:
    model = fresh_model(tmp_path)
    report = model.with_name("report.json")
    words = ("tune", model, *FEW, "--at-most", "1%", "--report", report)
    with unchanged(model.parent):
        done = call(*words)
    assert done.code == 1 and "no configuration meets" in done.err
    assert call(*words, "--analysis-only").code == 1
    assert json.loads(report.read_text())["met"] is False
    assert sorted(path.name for path in model.parent.iterdir()) == ["model.onnx", "report.json", "report.md"]


@pytest.mark.long
def test_a_plan_of_sensitivities(tmp_path: Path) -> None:
    model = fresh_model(tmp_path)
    with unchanged(model.parent):
        done = call("plan", "--sensitivity", model, *FEW[:-2])
    assert done.code == 0 and "block 0 fc1" in done.out and "KL of the classes" in done.out
    found = json.loads(call("plan", "--sensitivity", model, *FEW[:-2], "--json", "-").out)
    assert {loss["form"] for loss in found["sensitivity"]["losses"]} == {"int8"}


@pytest.mark.parametrize(
    "words",
    [
        ("plan", "--sensitivity", "-p", "prune24"),
        ("plan", "-p", "prune24", "--exact", "3"),
        ("plan", "--sensitivity"),
        ("tune", "--budget", "kl<=1"),
        ("tune", "--data", str(IMAGES)),
        ("tune", "--data", str(IMAGES), "--budget", "speed>=2"),
        ("tune", "--data", str(IMAGES), "--budget", "kl<=1", "--rounds", "2"),
    ],
)
def test_what_is_no_command(words: tuple[str, ...], tmp_path: Path) -> None:
    model = fresh_model(tmp_path)
    with unchanged(model.parent):
        done = call(*words, model)
    assert done.code == 2 and ("next:" in done.err or "expected:" in done.err)


@pytest.mark.long
def test_a_screen_unless_everything_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpusq_onnx.cli import plan

    model = fresh_model(tmp_path)
    words = ("plan", "--sensitivity", model, *FEW[:-2])
    monkeypatch.setattr(plan, "SCREEN", 2)
    monkeypatch.setenv("COLUMNS", "200")
    short, full = call(*words), call(*words, "--full")
    assert (short.code, full.code) == (0, 0), short.err
    assert "groups that cost most; --full has all" in short.out and "--full has all" not in full.out
    shown, rows = (
        [line.split() for line in said.out.splitlines() if line.startswith("block ")] for said in (short, full)
    )
    assert len(shown) == 2 < len(rows) and all(row in rows for row in shown)
    costs = [sorted(float(row[-1].lstrip("~")) for row in some) for some in (shown, rows)]
    assert costs[0] == costs[1][-2:]
    tuned = ("tune", model, *FEW, "--budget", "agreement>=0.5", "-o", model.with_name("r.toml"))
    brief, long = call(*tuned), call(*tuned, "--full")
    assert "form   groups  operations" in brief.out and "form   groups  operations" not in long.out
    assert len(brief.out.splitlines()) < len(long.out.splitlines())
