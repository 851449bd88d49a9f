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

from tests.terminal import terminal

TRANSCRIPTS = Path(__file__).with_name("transcripts")
WIDTHS = (80, 120)
SCREEN = 60
PASSES = "prune24{method=magnitude},qdq-int8"
COMMANDS = {
    "plan": ["plan", "-p", PASSES, "model.onnx"],
    "plan-sparse": ["plan", "-p", f"{PASSES}{{profile=sparse-int8}},fp16", "model.onnx"],
    "inspect": ["inspect", "model.onnx"],
    "apply": ["apply", "-p", PASSES, "--samples", "8", "-o", "small.onnx", "model.onnx"],
    "inspect-small": ["inspect", "small.onnx"],
    "check": ["check", "--data", str(LABELLED), "--max-top1-drop", "50", "model.onnx", "small.onnx"],
}
SHARED = Path(os.environ.get("GPUSQ_SHARED", ROOT.parent / "shared")) / "data" / "vit_tiny_imagenet.onnx"


@contextlib.contextmanager
def desk(columns: int) -> Iterator[None]:
    """A folder with the embedded model, a terminal of so many columns, and nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "model.onnx").write_bytes(MODEL.read_bytes())
        with terminal(Path(folder), columns):
            yield


def transcripts(columns: int) -> dict[str, str]:
    """The output of every command, in order, without what differs between machines and versions."""
    found = {}
    with desk(columns):
        for name, words in COMMANDS.items():
            outcome = call(*words)
            assert outcome.code == 0, outcome.err
            found[name] = normal(outcome.out, numbers=name in ("apply", "check"))
    return found


def normal(text: str, *, numbers: bool) -> str:
    """The text with versions, times, places and (of runs) measured numbers replaced."""
    text = text.replace(str(ASSETS), "ASSETS")
    text = re.sub(r"gpusq-onnx \d+\.\d+\.\d+", "gpusq-onnx VERSION", text)
    text = re.sub(r"\d+\.\d s\b", "TIME", text)
    if numbers:
        text = re.sub(r"(cosine(?: of the two)?|top-\d|agreement|-> ?)\s*[\d.]+%?", r"\1 #", text)
        text = re.sub(
            r"^(parameters|stored|packed|file|non-zero|sparse|bytes|bit).*$",
            lambda found: re.sub(r"\d", "9", found[0]),
            text,
            flags=re.MULTILINE,
        )
        text = re.sub(r"^\| logits .*$", "| logits | ... |", text, flags=re.MULTILINE)
        text = re.sub(r"^\| (output|-).*$", "", text, flags=re.MULTILINE)
        text = re.sub(r"(: )[\d.]+%( ->)", r"\1#\2", text)
    return text


@pytest.mark.parametrize("columns", WIDTHS)
def test_the_verbs_print_what_they_printed(columns: int):
    for name, text in transcripts(columns).items():
        assert text == (TRANSCRIPTS / f"{name}-{columns}.txt").read_text(encoding="utf-8"), f"{name} at {columns}"


@pytest.mark.parametrize("columns", WIDTHS)
def test_no_output_is_more_than_a_screen_nor_wider(columns: int):
    for path in TRANSCRIPTS.glob(f"*-{columns}.txt"):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= SCREEN, path.name
        if "check" not in path.name:  # Markdown, as CI services show it
            assert max(len(line) for line in lines if "gpusq-onnx " not in line) <= columns, path.name


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


@pytest.mark.parametrize(
    "words", [["passes", "list"], ["passes", "show", "qdq-int8"], ["help"], ["help", "plan"]], ids=str
)
def test_what_there_is_fits_on_a_screen(words: list[str]):
    assert 5 < len(call(*words).out.splitlines()) <= SCREEN + 10 * (words[0] == "help")


def test_colours_are_for_terminals_that_want_them(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    from gpusq_onnx.cli import console

    lines = ["12 x  sparse INT8", "1 x  dense FP32 \x1b[31m"]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    console.show_verdict(lines)
    shown = capsys.readouterr().out
    assert "\x1b[32msparse INT8\x1b[0m" in shown and "\\x1b[31m" in shown
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
