"""What the verbs print by default, at 80 and 120 columns, as files; and that it is never more than a screen.

python tests/cli/test_transcripts.py    writes the files anew, to be looked at in the diff
"""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import ASSETS, LABELLED, MODEL, ROOT, call

from gpusq_onnx.cli.verbs import VERBS
from tests.terminal import terminal

TRANSCRIPTS = Path(__file__).with_name("transcripts")
WIDTHS = (80, 120)
SCREEN = 60
PASSES = "prune24{method=magnitude},qdq-int8"
LOOK = ["--data", str(LABELLED), "--images", "8", "--exact", "6", "model.onnx"]
COMMANDS = {
    "plan": ["plan", "-p", PASSES, "model.onnx"],
    "plan-sparse": ["plan", "-p", f"{PASSES}{{profile=sparse-int8}},fp16", "model.onnx"],
    "inspect": ["inspect", "model.onnx"],
    "apply": ["apply", "-p", PASSES, "--samples", "8", "-o", "small.onnx", "model.onnx"],
    "inspect-small": ["inspect", "small.onnx"],
    "check": ["check", "--data", str(LABELLED), "--max-top1-drop", "50", "model.onnx", "small.onnx"],
    "check-taps": [
        *("check", "--data", str(LABELLED), "--samples", "8", "--min-cosine", "1", "--taps", "blocks"),
        *("model.onnx", "small.onnx"),
    ],
    "sensitivity": ["plan", "--sensitivity", "--no-cache", *LOOK],
    "tune": ["tune", "--budget", "agreement>=0.2", "--no-cache", "--measurements", "1", *LOOK],
    "pack": ["pack", "small.onnx"],
    "unpack": ["unpack", "small.gpusq", "-o", "again.onnx"],
    "bench": [*("bench", "--backend", "onnxruntime", "--batch", "1,2", "--rounds", "3"), "model.onnx", "small.onnx"],
    "cam": ["cam", "--data", str(LABELLED), "--samples", "4", "model.onnx", "small.onnx"],
    "passes": ["passes", "list"],
    "passes-targets": ["passes", "show", "targets"],
}
UNSTEADY = ("tune", "bench", "cam")  # whose columns are as wide as what was measured; that they fit is all that is seen
SHARED = Path(os.environ.get("GPUSQ_SHARED", ROOT.parent / "shared")) / "data" / "vit_tiny_imagenet.onnx"


@contextlib.contextmanager
def desk(columns: int) -> Iterator[None]:
    """A folder with the embedded model, a terminal of so many columns, and nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "model.onnx").write_bytes(MODEL.read_bytes())
        with terminal(Path(folder), columns):
            yield


def transcripts(columns: int) -> dict[str, str]:
    """Each command's output, which fits on a screen, in order, without what differs between machines and versions."""
    found = {}
    with desk(columns):
        for name, words in COMMANDS.items():
            outcome = call(*words)
            assert outcome.code == (name == "check-taps"), outcome.err
            lines = outcome.out.splitlines()
            assert len(lines) <= SCREEN, name
            assert max(len(line) for line in lines if "gpusq-onnx " not in line) <= columns, name
            if name not in UNSTEADY:
                found[name] = normal(outcome.out, name.partition("-")[0])
    return found


def normal(text: str, verb: str) -> str:
    """The text with versions, times, places and (of runs) measured numbers replaced."""
    text = text.replace(str(ASSETS), "ASSETS")
    text = re.sub(r"gpusq-onnx \d+\.\d+\.\d+", "gpusq-onnx VERSION", text)
    text = re.sub(r"\d+\.\d s\b", "TIME", text)
    if verb == "apply":
        text = re.sub(r"(cosine\s+between the two)\s+[\d.]+", r"\1 #", text)
        totals = r"^(parameters|stored|packed|file|non-zero|sparse|bytes|bit).*$"
        text = re.sub(totals, lambda found: re.sub(r"\d", "9", found[0]), text, flags=re.MULTILINE)
    text = re.sub(r"[\d,]+ bytes\nsha256 [0-9a-f]{64}", "# bytes\nsha256 DIGEST", text)
    if verb in ("sensitivity", "pack"):
        text = re.sub(r"~?\b\d[\d,]*(\.\d+)?(e-\d+)?%?(?=[ ,;\n])", "#", text)
    if verb == "check":
        text = re.sub(r"[+-]?\b\d+\.\d+(e-\d+)?%?", "#", text)
    if verb in ("check", "sensitivity", "pack"):
        text = re.sub(r"\n  (?=[a-z]+.*#)", " ", text)  # where a line is folded depends on its numbers
        text = re.sub(r" *# *", " # ", text)
    return "\n".join(line.rstrip() for line in text.split("\n"))


@pytest.mark.long
@pytest.mark.parametrize("columns", [80, pytest.param(120, marks=pytest.mark.long)])
def test_the_verbs_print_what_they_printed(columns: int):
    for name, text in transcripts(columns).items():
        assert text == (TRANSCRIPTS / f"{name}-{columns}.txt").read_text(encoding="utf-8"), f"{name} at {columns}"


@pytest.mark.skipif(not SHARED.exists(), reason="wants ../shared")
@pytest.mark.parametrize(
    "words",
    [["inspect"], ["plan", "-p", "tensorrt-int8"], ["plan", "-p", "sparse-int8"], ["plan", "-p", "canonical,prune24"]],
    ids=str,
)
def test_a_real_model_takes_a_screen_at_most(words: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    outcome = call(*words, SHARED, *(["--allow-noop"] if words[0] == "plan" else []))
    assert outcome.code == 0, outcome.err
    assert 5 < len(outcome.out.splitlines()) <= SCREEN


@pytest.mark.long
@pytest.mark.skipif(not SHARED.exists(), reason="wants ../shared")
def test_a_run_on_a_real_model_takes_a_screen_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    passes = "prune24{method=magnitude},qdq-int8{profile=sparse-int8},fp16"
    outcome = call("apply", "-p", passes, "--samples", "1", "-o", tmp_path / "small.onnx", SHARED)
    assert outcome.code == 0, outcome.err
    assert 40 < len(outcome.out.splitlines()) <= SCREEN


@pytest.mark.parametrize(
    "words",
    [
        ["passes", "list"],
        ["passes", "show", "qdq-int8"],
        ["passes", "show", "targets"],
        ["help"],
        *(["help", verb] for verb in VERBS),
    ],
    ids=str,
)
def test_what_there_is_fits_on_a_screen(words: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert 5 < len(call(*words).out.splitlines()) <= SCREEN


def test_colours_are_for_terminals_that_want_them(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    from gpusq_onnx.cli import console

    lines = ["12 x  sparse INT8", "1 x  dense FP32 \x1b[31m", "gates: min_ap = 1: NOT MET"]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    console.show_verdict(lines)
    shown = capsys.readouterr().out
    assert "\x1b[32msparse INT8\x1b[0m" in shown and "\\x1b[31m" in shown and ": \x1b[31mNOT MET\x1b[0m" in shown
    for key, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as patch:
            patch.setenv(key, value)
            console.show_verdict(lines)
            assert "\x1b" not in capsys.readouterr().out


if __name__ == "__main__":
    TRANSCRIPTS.mkdir(exist_ok=True)
    for width in WIDTHS:
        for title, shown in transcripts(width).items():
            (TRANSCRIPTS / f"{title}-{width}.txt").write_text(shown, encoding="utf-8")
