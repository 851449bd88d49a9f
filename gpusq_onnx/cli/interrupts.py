"""Signals that end a command: heard from the first import on, so that every ending cleans up.

SIGINT (Ctrl-C), SIGTERM (a scheduler, `docker stop`) and SIGHUP (a terminal that closes) raise KeyboardInterrupt once;
the ones after it wait until the command has put its things away. Where that interrupt meets a finaliser, which Python
lets no exception out of, it is raised again a moment later. One that comes when all is done, while Python and the
libraries put themselves away, ends the process at once with the command's own exit code. A signal that the caller has
switched off (`nohup`, a job in the background) stays off.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
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
    before = _listening()

    def stop(number: int, frame: FrameType | None) -> None:
        first = not found.number
        found.number = found.number or number
        if first and Holding.blocks:
            Holding.waiting = True
        elif first:
            raise KeyboardInterrupt

    for number in before:
        signal.signal(number, stop)
    try:
        with _raised_again(found) if before else nullcontext():
            yield found
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def all_done(exit_code: int) -> None:
    """From here on a signal ends the process, with this exit code."""
    for number in _listening():
        signal.signal(number, lambda number, frame: os._exit(exit_code))


def _listening() -> dict[int, Any]:
    """The handlers by signal, of those that are on; none outside the main thread, which alone gets signals."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    handlers = {number: signal.getsignal(number) for name in SIGNALS if (number := getattr(signal, name, None))}
    return {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}


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
