"""Signals that end a command: heard from the first import on, so that every ending cleans up.

SIGINT (Ctrl-C), SIGTERM (a scheduler, `docker stop`) and SIGHUP (a terminal that closes) raise KeyboardInterrupt once;
the ones after it wait until the command has put its things away. A signal that the caller has switched off (`nohup`, a
job in the background) stays off.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


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
        if first:
            raise KeyboardInterrupt

    for number in listening:
        signal.signal(number, stop)
    try:
        yield found
    finally:
        for number in listening:
            signal.signal(number, before[number])
