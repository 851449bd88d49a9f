"""Signals that a command hears: raised once, never lost, and not between making a thing and noting it."""

import os
import signal
import time
import weakref

import pytest

from gpusq_onnx.cli.interrupts import heard
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
