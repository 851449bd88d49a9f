"""What is drawn where: progress only on a terminal outside CI, tables whole in a pipe."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import ROOT

from gpusq_onnx.cli import console
from gpusq_onnx.pipeline.progress import NullProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """stderr as a terminal, outside CI."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    return stream


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals on Windows")
def test_progress_is_drawn_on_a_terminal_and_leaves_stdout_alone() -> None:
    import pty

    script = (
        "import time; from gpusq_onnx.cli.console import open_progress\n"
        "progress = open_progress(quiet=False)\n"
        "progress.start('calibrating', 4)\n"
        "for _ in range(3): time.sleep(0.15); progress.advance()\n"
        "progress.finish(); progress.finish()"
    )
    ours, theirs = pty.openpty()
    environment = {**{k: v for k, v in os.environ.items() if k != "CI"}, "TERM": "xterm", "COLUMNS": "100"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, cwd=ROOT, env=environment, check=True)
    drawn = os.read(ours, 1 << 16).decode()
    os.close(ours)
    os.close(theirs)
    assert done.stdout == b""
    assert "calibrating" in drawn
    assert "2/4" in drawn
    assert "left" in drawn


def test_progress_is_silent_when_quiet_in_ci_and_in_a_pipe(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(console.open_progress(quiet=True), NullProgress)
    monkeypatch.setenv("CI", "true")
    assert isinstance(console.open_progress(quiet=False), NullProgress)
    monkeypatch.delenv("CI")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert isinstance(console.open_progress(quiet=False), NullProgress)


def test_a_pipe_gets_whole_rows(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 300
    console.show_table(["name", "[out, k]"], [[long, "[1, 2]"], ["[bold]y", "[3, 4]"]])
    assert [line.split() for line in capsys.readouterr().out.splitlines()][1:] == [
        [long, "[1,", "2]"],
        ["[bold]y", "[3,", "4]"],
    ]


def test_json_refuses_what_is_not_json() -> None:
    with pytest.raises(ValueError, match="Out of range"):
        console.write_json({"scale": float("nan")}, Path("-"))
