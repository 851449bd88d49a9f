"""The GitHub Action: well-formed, and its shell steps do on the embedded model what they say."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from arrows import ROOT
from github_runner import Job, run
from github_runner import commands as workflow_commands

ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
STEPS = ACTION["runs"]["steps"]
ASSETS = ROOT / "tests" / "assets"


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the PATH: `gpusq-onnx` of this checkout, and a `python` whose install steps do nothing."""
    folder = tmp_path_factory.mktemp("bin")
    for name, words in {"gpusq-onnx": f'exec {sys.executable} -m gpusq_onnx "$@"', "python": ":"}.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{words}\n")
        (folder / name).chmod(0o755)
    return folder


def act(desk: Path, commands: Path, event: str = "push", **inputs: str) -> Job:
    given = {"model": "model.onnx", "passes": "qdq-int8", "data": "images.npz", "data_args": "--samples 16", **inputs}
    path = f"{commands}{os.pathsep}{os.environ['PATH']}"
    given = {name.replace("_", "-"): value for name, value in given.items()}
    return run(ACTION, given, desk, {"PATH": path, "PYTHONPATH": str(ROOT), "GITHUB_ACTION_PATH": str(ROOT)}, event)


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    shutil.copy(ASSETS / "digits_vit.onnx", tmp_path / "model.onnx")
    shutil.copy(ASSETS / "digits_test.npz", tmp_path / "images.npz")
    return tmp_path


def test_the_action_is_well_formed() -> None:
    assert ACTION["runs"]["using"] == "composite"
    assert ACTION["name"] == "gpusq-onnx" and ACTION["description"]
    assert [name for name, entry in ACTION["inputs"].items() if not entry["description"]] == []
    assert [name for name, entry in ACTION["inputs"].items() if entry.get("required")] == ["model"]
    assert [
        name for name, entry in ACTION["inputs"].items() if not entry.get("required") and "default" not in entry
    ] == []
    assert [name for name, entry in ACTION["outputs"].items() if not entry["description"] or not entry["value"]] == []
    for step in STEPS:
        assert ("run" in step) != ("uses" in step), step["name"]
        assert "run" not in step or step["shell"] == "bash", step["name"]
        assert "uses" not in step or "@v" in step["uses"], step["name"]


def test_every_input_is_used_and_every_shell_step_is_bash(tmp_path: Path) -> None:
    text = (ROOT / "action.yml").read_text(encoding="utf-8")
    assert [name for name in ACTION["inputs"] if f"inputs.{name}" not in text] == []
    for number, step in enumerate(step for step in STEPS if "run" in step):
        script = tmp_path / f"{number}.sh"
        script.write_text(step["run"])
        subprocess.run(["bash", "-n", script], check=True)


def test_the_documents_show_inputs_that_there_are() -> None:
    page = (ROOT / "docs" / "how-to" / "ci.md").read_text(encoding="utf-8")
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]
    jobs = [job for block in blocks if isinstance(block, dict) for job in block["jobs"].values()]
    steps = [step for block in blocks if isinstance(block, list) for step in block]
    steps += [step for job in jobs for step in job["steps"]]
    ours = [step for step in steps if step.get("uses", "").partition("@")[0].endswith("/gpusq-onnx")]
    assert len(ours) >= 3
    assert {name for step in ours for name in step["with"]} <= set(ACTION["inputs"])


@pytest.mark.long
def test_it_compresses_checks_and_tells(desk: Path, commands: Path) -> None:
    job = act(desk, commands, check_args="--min-agreement 0.9 --max-top1-drop 5", data_args="--samples '64'")
    assert job.code == 0, job.log
    measured = json.loads(job.outputs.pop("metrics"))
    assert job.outputs == {
        "model": "small.onnx",
        "artefacts": "gpusq-artefacts",
        "page": "gpusq-artefacts/report.html",
        "passed": "true",
        "exit-code": "0",
    }
    assert {"agreement", "cosine", "top1"} <= set(measured) and 0.9 <= measured["agreement"] <= 1
    assert "| top1 |" in job.summary
    assert (desk / "small.onnx").is_file()
    kept = {path.name for path in (desk / "gpusq-artefacts").iterdir()}
    assert {"apply.json", "apply.md", "check.json", "check.md", "inputs.json", "outputs.json", "report.html"} <= kept
    for words in ("## qdq-int8", "| top-1 agreement |", "gates: --min-agreement 0.9, --max-top1-drop 5: met"):
        assert words in job.summary
    assert json.loads((desk / "gpusq-artefacts" / "check.json").read_text())["comparison"]["samples"] == 64


@pytest.mark.long
def test_a_gate_that_fails_fails_the_job_and_the_summary_says_why(desk: Path, commands: Path) -> None:
    job = act(desk, commands, check_args="--min-cosine 1")
    assert job.code == 1
    assert (job.outputs["passed"], job.outputs["exit-code"]) == ("false", "1")
    assert "gates: --min-cosine 1: NOT MET" in job.summary
    assert "output logits has cosine 0.99" in job.summary
    assert "::error title=gpusq-onnx, a gate failed::output logits has cosine 0.99" in job.log
    assert (desk / "small.onnx").is_file()


@pytest.mark.long
@pytest.mark.parametrize(
    ("inputs", "code", "words"),
    [
        ({"passes": "prune42"}, 2, "prune42"),
        ({"model": "none.onnx"}, 2, "none.onnx"),
        ({"model": "a; touch pwned"}, 2, "a; touch pwned"),
        ({"passes": "qdq-int8", "model": "images.npz"}, 3, "not an ONNX model"),
    ],
)
def test_an_error_ends_with_the_tools_own_code_and_text(
    desk: Path, commands: Path, inputs: dict[str, str], code: int, words: str
) -> None:
    job = act(desk, commands, **inputs)
    assert job.code == code, job.log
    assert (job.outputs["exit-code"], job.outputs["passed"]) == (str(code), "")
    assert f"gpusq-onnx apply: exit code {code}" in job.summary and words in job.summary
    assert not (desk / "small.onnx").exists() and not (desk / "pwned").exists()


@pytest.mark.long
def test_a_gate_that_cannot_be_asked_is_no_pass(desk: Path, commands: Path) -> None:
    job = act(desk, commands, data="", apply_args="--samples 8", check_args="--min-top1 0.5")
    assert job.code == 2
    assert job.outputs["passed"] == ""
    assert "gpusq-onnx check: exit code 2" in job.summary and "needs labels" in job.summary


@pytest.mark.slow
def test_a_recipe_gates_and_a_baseline_are_taken(desk: Path, commands: Path) -> None:
    (desk / "recipe.toml").write_text('[[pass]]\nname = "qdq-int8"\nprofile = "accurate"\n')
    old = {"top1_agreement": 0.5, "outputs": [{"cosine_mean": 0.5}], "candidate_metrics": {"top1": 0.25}}
    (desk / "old.json").write_text(json.dumps({"comparison": old}))
    wanted = {"gates": "--min-agreement 0.9", "data_args": "--samples 16", "baseline": "old.json", "page": "false"}
    job = act(desk, commands, passes="", recipe="recipe.toml", **wanted)
    assert job.code == 0, job.log
    assert "gates: --min-agreement 0.9: met" in job.summary
    assert "| metric | original | compressed | baseline | change |" in job.summary
    assert re.search(r"\| top1 \| [\d.]+ \| [\d.]+ \| 0.25 \| \+0.\d+ \|", job.summary)
    assert job.outputs["page"] == ""


@pytest.mark.slow
def test_classes_reach_both_verbs(desk: Path, commands: Path) -> None:
    (desk / "classes.txt").write_text("zero\n")
    assert act(desk, commands, classes="classes.txt", page="false").code == 0
    for name in ("apply.log", "check.log"):  # arrays have labels of their own
        assert "classes not applied" in (desk / "gpusq-artefacts" / name).read_text()


@pytest.mark.long
@pytest.mark.parametrize(
    ("event", "comment", "calls"),
    [
        ("pull_request", "true", 1),
        pytest.param("push", "true", 0, marks=pytest.mark.slow),
        pytest.param("pull_request", "false", 0, marks=pytest.mark.slow),
    ],
)
def test_a_comment_is_written_into_a_pull_request(
    desk: Path, commands: Path, event: str, comment: str, calls: int
) -> None:
    (commands / "gh").write_text(f'#!/usr/bin/env bash\necho "$*" >> {desk}/gh.log\n')
    (commands / "gh").chmod(0o755)
    job = act(desk, commands, event, comment=comment, page="false", gates="--min-cosine 1")
    assert job.code == 1  # the comment says that a gate failed
    log = desk / "gh.log"
    lines = log.read_text().splitlines() if log.exists() else []
    assert len(lines) == calls
    assert all(line.startswith("pr comment 7 --repo me/models --body-file ") for line in lines)
    if calls:
        assert "NOT MET" in (desk / "gpusq-artefacts" / "comment.md").read_text()


def test_the_model_is_among_what_is_uploaded_for_as_long_as_asked() -> None:
    (step,) = (step for step in STEPS if "upload-artifact" in step.get("uses", ""))
    uploaded = ["${{ inputs.artefacts }}", "${{ inputs.output }}", "${{ inputs.output }}.data"]
    assert step["with"]["path"].splitlines() == uploaded
    assert step["with"]["retention-days"] == "${{ inputs.retention-days }}"


def test_a_quote_that_is_not_closed_loses_no_gate(desk: Path, commands: Path) -> None:
    job = act(desk, commands, check_args="--min-cosine '1")
    assert job.code != 0
    assert job.outputs["passed"] == ""


EVIL = "w\n::error title=x::pwned\n##[error]pwned\n::set-output name=passed::true\n<img src=x>](http://x)`\x1b[31m"


def evil_model(path: Path) -> None:
    """Every tensor and node has a name that is a workflow command, markup and control characters at once."""
    import onnx

    proto = onnx.load(ASSETS / "digits_vit.onnx")
    renamed = {tensor.name: f"{tensor.name}{EVIL}" for tensor in proto.graph.initializer}
    for tensor in proto.graph.initializer:
        tensor.name = renamed[tensor.name]
    for node in proto.graph.node:
        node.name += EVIL
        node.input[:] = [renamed.get(name, name) for name in node.input]
    onnx.save(proto, path)


@pytest.mark.slow
def test_names_in_a_model_are_neither_commands_nor_markup(desk: Path, commands: Path) -> None:
    evil_model(desk / "model.onnx")
    job = act(desk, commands, passes="prune24,qdq-int8", check_args="--min-cosine 1")
    assert job.outputs["passed"] == "false", job.log
    assert all(line.startswith("::error title=gpusq-onnx, a gate failed::") for line in workflow_commands(job.log))
    for text in (job.summary, (desk / "gpusq-artefacts" / "apply.json").read_text()):
        assert "\x1b" not in text
        assert not [line for line in text.splitlines() if line.strip().startswith(("::", "##["))]
    assert not re.search(r"(?<!\\)<img|\]\(http", job.summary)


def test_an_error_about_such_a_name_is_text_too(desk: Path, commands: Path) -> None:
    import onnx

    evil_model(desk / "model.onnx")
    proto = onnx.load(desk / "model.onnx")
    proto.graph.node[5].op_type = "Nothing" + EVIL
    onnx.save(proto, desk / "model.onnx")
    job = act(desk, commands)
    assert job.code == 3
    assert workflow_commands(job.log) == []
    assert not [line for line in job.summary.splitlines() if line.startswith(("::", "##[", "<"))]


def test_inputs_add_no_outputs_and_no_options(desk: Path, commands: Path) -> None:
    job = act(desk, commands, output="small.onnx\npassed=true\nexit-code=0", data_args="--samples 2", model="--version")
    assert job.code == 2
    assert job.outputs["passed"] == ""
    assert job.outputs["model"] == "small.onnx\npassed=true\nexit-code=0"
    assert "--version" in job.summary


@pytest.mark.long
def test_the_install_step_installs_this_checkout(tmp_path: Path) -> None:
    (step,) = (step for step in STEPS if step["name"] == "Install")
    tree, site = tmp_path / "tree", tmp_path / "site"
    for name in ("gpusq_onnx", "passes", "tools/trt_cpu"):
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    offline = {"PIP_TARGET": str(site), "PIP_NO_DEPS": "1", "PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, **offline, "GITHUB_ACTION_PATH": str(tree), "PATH": path}
    done = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", step["run"]], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (site / "gpusq_onnx" / "cli" / "app.py").is_file()


@pytest.mark.parametrize(
    ("extras", "page", "installed"),
    [
        ("metrics", "true", "[metrics,report]"),
        ("", "true", "[report]"),
        ("report", "true", "[report,report]"),
        ("data", "false", "[data]"),
        ("", "false", ""),
    ],
)
def test_what_the_page_needs_is_installed(extras: str, page: str, installed: str, tmp_path: Path) -> None:
    (step,) = (step for step in STEPS if step["name"] == "Install")
    (tmp_path / "python").write_text('#!/usr/bin/env bash\necho "${@: -1}"\n')
    (tmp_path / "python").chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    environment = {"PATH": path, "GITHUB_ACTION_PATH": "TREE", "EXTRAS": extras, "PAGE": page}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", step["run"]], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.strip()) == (0, f"TREE{installed}"), done.stderr
