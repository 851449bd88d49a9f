"""A few steps of the main thread in which no signal is raised: something is made, and noted so that it can be undone.

`cli.interrupts` raises KeyboardInterrupt for the signals that it hears; one that comes in a `held` block is raised at
the block's end. Limits: where nothing hears signals for us, as in a notebook, Python's own Ctrl-C is raised at once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Holding:
    """Of the main thread: how many `held` blocks it is in, and whether an interrupt waits for their end."""

    blocks = 0
    waiting = False


@contextmanager
def held() -> Iterator[None]:
    """Let interrupts of the main thread wait for the end of the block."""
    if threading.current_thread() is not threading.main_thread():
        yield  # which no signal disturbs
        return
    Holding.blocks += 1
    try:
        yield
    finally:
        Holding.blocks -= 1
        if Holding.waiting and not Holding.blocks:
            Holding.waiting = False
            raise KeyboardInterrupt
