"""`help VERB`, and what bash, zsh and fish complete, asked as those shells ask."""

import os
import re
import subprocess
import sys

import pytest
from command_line import ROOT, call

from gpusq_onnx.cli.help import complete_pass, complete_pipeline, complete_shown
from gpusq_onnx.cli.verbs import VERBS


@pytest.mark.parametrize("words", [["apply"], ["check"], ["passes"], ["passes", "show"], []])
def test_help_of_a_verb_is_the_verbs_help(words: list[str]) -> None:
    outcome = call("help", *words)
    assert (outcome.code, outcome.out) == (0, call(*words, "--help").out)


@pytest.mark.parametrize(
    ("words", "says"),
    [(["aply"], "did you mean 'apply'"), (["passes", "shw"], "show"), (["apply", "now"], "no word")],
)
def test_help_of_no_verb_exits_2(words: list[str], says: str) -> None:
    outcome = call("help", *words)
    assert (outcome.code, outcome.out) == (2, "")
    assert says in outcome.err


@pytest.mark.parametrize("verb", [name for name, row in VERBS.items() if not row.below])
def test_every_option_is_named_on_a_page(verb: str) -> None:
    pages = [page for page in (ROOT / "docs").rglob("*.md") if page.name != "CHANGELOG.md"]
    text = "\n".join(page.read_text(encoding="utf-8") for page in [*pages, ROOT / "README.md"])
    params = VERBS[verb].command(verb).params
    options = [p.opts for p in params if p.param_type_name == "option" and not p.hidden]
    named = [any(re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text) for name in names) for names in options]
    assert [names[0] for names, there in zip(options, named, strict=True) if not there] == []


def completed(line: str, shell: str) -> str:
    """What the tool answers to a shell whose command line is `line`, the cursor at its end."""
    words = {"bash": {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}}
    asked = words.get(shell, {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"})
    environment = {**os.environ, **asked, "_GPUSQ_ONNX_COMPLETE": f"complete_{shell}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "gpusq_onnx"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    return done.stdout


@pytest.mark.long
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("gpusq-onnx ch", "check"),
        ("gpusq-onnx check --min-agr", "--min-agreement"),
        ("gpusq-onnx apply --passes prune24,qdq", "prune24,qdq-int8"),
        ("gpusq-onnx passes show pru", "prune24"),
    ],
)
def test_a_shell_completes(shell: str, line: str, expected: str) -> None:
    assert expected in completed(line, shell)


def test_each_shell_gets_a_script() -> None:
    for shell in ("bash", "zsh", "fish"):
        environment = {**os.environ, "_GPUSQ_ONNX_COMPLETE": f"source_{shell}", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "gpusq_onnx"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert (done.returncode, "gpusq-onnx" in done.stdout) == (0, True), done.stderr


def test_names_are_completed_at_the_end_of_a_pipeline() -> None:
    assert complete_pass("qdq-int8") == ["qdq-int8"]
    assert {"qdq", "qdq-int4", "qdq-int8"} <= set(complete_pass("qdq"))
    assert complete_pipeline("prune24{method=sparsegpt},qdq-int8") == ["prune24{method=sparsegpt},qdq-int8"]
    assert complete_pipeline("prune24{meth") == []
    assert complete_shown("hop") == ["hopper"] and "targets" in complete_shown("")
    assert {"prune24", "tensorrt-int8"} <= set(complete_pipeline(""))
