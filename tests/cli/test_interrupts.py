"""Signals that a command hears: raised once, never lost, and not between making a thing and noting it."""

import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest
from command_line import call, fresh_model

from gpusq_onnx.cli.interrupts import heard
from gpusq_onnx.errors import of_an_interrupt
from gpusq_onnx.graph.blame import blaming
from gpusq_onnx.interruption import held


def send() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_is_an_interrupt_once() -> None:
    with heard() as found:
        with pytest.raises(KeyboardInterrupt):
            send()
        send()
        assert found.exit_code == 128 + signal.SIGTERM


def test_a_signal_in_a_held_block_waits_for_its_end() -> None:
    noted = []

    def make() -> None:
        with held():
            with held():
                send()
            noted.append("made")

    with heard(), pytest.raises(KeyboardInterrupt):
        make()
    assert noted == ["made"]


def test_a_signal_that_a_finaliser_swallows_comes_again(capfd: pytest.CaptureFixture[str]) -> None:
    things = [set[int]()]  # which can be referred to weakly
    weakref.finalize(things[0], send)

    def drop() -> None:
        things.clear()
        time.sleep(5)

    with heard(), pytest.raises(KeyboardInterrupt):
        drop()
    assert capfd.readouterr().err == ""


def test_what_was_there_before_is_there_after() -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)]
    with heard():
        pass
    assert handlers == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)]


def test_a_signal_after_the_work_ends_the_process_as_it_would_have_ended() -> None:
    late = "atexit.register(lambda: (os.kill(os.getpid(), signal.SIGTERM), print('late')))"
    command = f"import atexit, os, signal, sys; from gpusq_onnx.cli import main; {late}; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", command, "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("gpusq-onnx") and "late" not in done.stdout


def turned_over() -> None:
    """As `threading.Condition` does where the interrupt meets it between giving its lock up and taking it again."""
    lock = threading.Lock()
    with lock:
        lock.release()
        raise KeyboardInterrupt


def test_an_interrupt_that_a_lock_made_an_error_of_is_one() -> None:
    with pytest.raises(RuntimeError) as caught:
        turned_over()
    assert of_an_interrupt(caught.value)
    assert not of_an_interrupt(RuntimeError("it failed"))
    with pytest.raises(KeyboardInterrupt), blaming():
        turned_over()


def test_such_an_interrupt_leaves_no_reproducer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpusq_onnx.pipeline.manager.execute", lambda *_: turned_over())
    model = fresh_model(tmp_path)
    before = {path.name for path in model.parent.iterdir()}
    outcome = call("apply", model, "-p", "prune24{method=magnitude}")
    assert outcome.code == 130
    assert "error" not in outcome.err
    assert {path.name for path in model.parent.iterdir()} == before
