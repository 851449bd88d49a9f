"""What is drawn where: progress only on a terminal outside CI, tables whole in a pipe."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import ROOT

from gpusq_onnx.cli import console, main, progress
from gpusq_onnx.progress import NullProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals on Windows")
def test_progress_is_drawn_on_a_terminal_and_leaves_stdout_alone() -> None:
    import pty

    script = (
        "import time; from gpusq_onnx.cli.progress import open_progress\n"
        "with open_progress(quiet=False) as progress:\n"
        "    progress.start('calibrating', 4)\n"
        "    for _ in range(3): time.sleep(0.15); progress.advance()\n"
        "    progress.finish()"
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


def test_progress_is_drawn_on_terminals_written_in_logs_and_silent_when_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(stream: io.StringIO, *, quiet: bool = False) -> type:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", stream)
            with progress.open_progress(quiet=quiet) as opened:
                return type(opened)

    monkeypatch.delenv("CI", raising=False)
    assert opened(Terminal()) is progress.RichProgress
    assert opened(Terminal(), quiet=True) is NullProgress
    assert opened(io.StringIO()) is progress.LineProgress
    monkeypatch.setenv("CI", "true")
    assert opened(Terminal()) is progress.LineProgress
    assert opened(io.StringIO(), quiet=True) is NullProgress


def test_a_log_gets_a_line_every_half_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    lines = progress.LineProgress(lambda: now[0])
    lines.start("step 2 of 4, qdq-int8: calibrating", 100)
    for _ in range(10):
        now[0] += 9
        lines.advance(10)
    lines.finish()
    assert capsys.readouterr().err.splitlines() == [
        "step 2 of 4, qdq-int8: calibrating; 40 of 100, 54 s left",
        "step 2 of 4, qdq-int8: calibrating; 80 of 100, 18 s left",
    ]


def test_an_error_gives_the_cursor_back(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", stream)

    def work() -> None:
        with progress.open_progress(quiet=False) as opened:
            opened.start("calibrating", 4)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    drawn = stream.getvalue()
    assert drawn.rfind("\x1b[?25h") > drawn.rfind("\x1b[?25l") >= 0


def test_a_pipe_gets_whole_rows(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 300
    console.show_table(["name", "[out, k]"], [[long, "[1, 2]"], ["[bold]y", "[3, 4]"]])
    assert [line.split() for line in capsys.readouterr().out.splitlines()][1:] == [
        [long, "[1,", "2]"],
        ["[bold]y", "[3,", "4]"],
    ]


@pytest.mark.parametrize("words", [["passes", "list"], ["passes", "show", "qdq-int8"], ["passes", "show", "targets"]])
def test_a_terminal_gets_a_screen_without_codes(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(words) == 0
    lines = stream.getvalue().splitlines()
    assert len(lines) <= 60 and not any("x1b" in line for line in lines)
    assert max(map(len, lines[3:])) <= 80


def test_json_refuses_what_is_not_json() -> None:
    with pytest.raises(ValueError, match="Out of range"):
        console.write_json({"scale": float("nan")}, Path("-"))
