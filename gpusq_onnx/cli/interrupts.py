"""Signals that end a command: heard from the first import on, so that every ending cleans up.

SIGINT (Ctrl-C), SIGTERM (a scheduler, `docker stop`) and SIGHUP (a terminal that closes) raise KeyboardInterrupt once;
the ones after it wait until the command has put its things away. Where that interrupt meets a finaliser, which Python
lets no exception out of, it is raised again a moment later. A signal that the caller has switched off (`nohup`, a job
in the background) stays off.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from gpusq_onnx.interruption import Holding

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
_MOMENT = 0.01  # seconds


class Heard:
    """Which signal has come, 0 for none."""

    number = 0

    @property
    def exit_code(self) -> int:
        """As a shell has it: 130 for Ctrl-C."""
        return 128 + (self.number or signal.SIGINT)


@contextmanager
def heard() -> Iterator[Heard]:
    """While the block lasts, the signals raise KeyboardInterrupt in it."""
    found = Heard()
    if threading.current_thread() is not threading.main_thread():
        yield found  # only the main thread gets signals
        return
    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    listening = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]

    def stop(number: int, frame: FrameType | None) -> None:
        first = not found.number
        found.number = found.number or number
        if first and Holding.blocks:
            Holding.waiting = True
        elif first:
            raise KeyboardInterrupt

    for number in listening:
        signal.signal(number, stop)
    try:
        with _raised_again(found):
            yield found
    finally:
        for number in listening:
            signal.signal(number, before[number])


@contextmanager
def _raised_again(found: Heard) -> Iterator[None]:
    """Raise an interrupt that was lost in a finaliser once more, after it."""
    if not hasattr(signal, "setitimer"):
        yield
        return
    hook, handler = sys.unraisablehook, signal.getsignal(signal.SIGALRM)

    def lost(what: Any) -> None:
        if found.number and what.exc_type is KeyboardInterrupt:
            signal.setitimer(signal.ITIMER_REAL, _MOMENT)
        else:
            hook(what)

    def again(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    sys.unraisablehook = lost
    signal.signal(signal.SIGALRM, again)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        sys.unraisablehook = hook
