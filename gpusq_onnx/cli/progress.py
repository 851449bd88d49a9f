"""How long work shows itself: a line on a terminal, lines in a log; `--quiet` has none, `-v` every stage.

    terminal    one line that is drawn again and again: step, stage, how far, time gone, time left for all
    elsewhere   such a line every `EVERY` seconds, also while a stage does not advance: a log shows that work goes on
    -v          a line as each stage ends, with its time, on either
    --log-file  what -v says, whatever else is shown (`journal`)

Sentences that stay (how long all will take, what is gone on from) are lines on stderr everywhere but under `--quiet`.
rich is imported when something is drawn.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from threading import Event, Lock, Thread

from gpusq_onnx.cli.journal import Journal, settings
from gpusq_onnx.progress import NullProgress, Progress
from gpusq_onnx.text import duration, printable

EVERY = 30  # seconds between two lines of progress in a log


@contextmanager
def open_progress(*, quiet: bool) -> Iterator[Progress]:
    """What long work reports to. However the block ends, the line is gone then and the cursor is back."""
    chosen = settings()
    drawn = sys.stderr.isatty() and not os.environ.get("CI")
    lines = LineProgress()
    progress: Progress = NullProgress() if quiet else RichProgress() if drawn else lines
    listeners: list[Callable[[str], None]] = [chosen.journal.write] if chosen.journal else []
    if chosen.verbose:
        listeners.append(progress.say)
    if listeners:
        progress = Stages(progress, listeners, chosen.journal)
    try:
        with nullcontext() if quiet or drawn else lines.beating():
            yield progress
    finally:
        progress.finish()


class RichProgress:
    """One line with bar, count, time gone and time left; it vanishes when its stage ends."""

    def __init__(self) -> None:
        from rich import progress
        from rich.console import Console

        self._console = Console(stderr=True, markup=False, highlight=False)
        self._display = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(bar_width=20),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn("{task.fields[left]}", markup=False),
            progress.TextColumn("{task.fields[note]}", markup=False),
            console=self._console,
            transient=True,
        )
        self._task: progress.TaskID | None = None
        self._remains = Remains()

    def start(self, label: str, total: int | None = None, work: float = 0.0) -> None:
        self.finish()
        self._remains.start(total)
        self._display.start()
        self._task = self._display.add_task(label, total=total, note="", left="")

    def advance(self, n: int = 1) -> None:
        self._remains.advance(n)
        if self._task is not None:
            self._display.update(self._task, advance=n, left=self._remains.text)

    def note(self, text: str) -> None:
        if self._task is not None:
            self._display.update(self._task, note=text)

    def say(self, text: str) -> None:
        self._console.print(printable(text), soft_wrap=True)

    def remain(self, seconds: float | None) -> None:
        self._remains.all = seconds
        if self._task is not None:
            self._display.update(self._task, left=self._remains.text)

    def finish(self) -> None:
        self._remains.all = None
        if self._task is not None:
            self._display.remove_task(self._task)
            self._display.stop()
            self._task = None


class LineProgress:
    """For logs: what is done, how far, and the time left for all, every `EVERY` seconds; short work says nothing."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._spoken = clock()
        self._label, self._note = "", ""
        self._remains = Remains(clock)

    def start(self, label: str, total: int | None = None, work: float = 0.0) -> None:
        with self._lock:
            self._label, self._note = label, ""
            self._remains.start(total)
        self.speak()

    def advance(self, n: int = 1) -> None:
        with self._lock:
            self._remains.advance(n)
        self.speak()

    def note(self, text: str) -> None:
        self._note = text

    def say(self, text: str) -> None:
        print(printable(text), file=sys.stderr, flush=True)  # noqa: T201

    def remain(self, seconds: float | None) -> None:
        self._remains.all = seconds

    def finish(self) -> None:
        with self._lock:
            self._label, self._remains.all = "", None

    def speak(self) -> None:
        """A line, where `EVERY` seconds have gone by and something is under way."""
        with self._lock:
            now = self._clock()
            if now - self._spoken < EVERY or not self._label:
                return
            self._spoken = now
            far = [self._remains.count] if self._remains.count else []
            left = [self._remains.text] if self._remains.text else []
            line = "; ".join([self._label, ", ".join(far + left), self._note]).rstrip("; ").replace("; ; ", "; ")
        self.say(line)

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Speak while the block lasts, whether or not anything advances; a closed stderr is for the work to meet."""
        done = Event()

        def beat() -> None:
            while not done.wait(1):
                with suppress(OSError, ValueError):
                    self.speak()

        thread = Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()


class Remains:
    """How far a stage is, and what to say of the time left: for all, where that is known, else for the stage."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began, self._done, self._total = clock(), 0, 0
        self.all: float | None = None

    def start(self, total: int | None) -> None:
        """A stage of `total` units begins."""
        self._began, self._done, self._total = self._clock(), 0, total or 0

    def advance(self, n: int) -> None:
        """`n` more are done."""
        self._done += n

    @property
    def count(self) -> str:
        """`40 of 100`; nothing before the first."""
        return f"{self._done} of {self._total}" if self._total and self._done else ""

    @property
    def text(self) -> str:
        """`54 s left`, of the stage; `about 12 min left for all`."""
        if self.all is not None:
            return f"about {duration(self.all)} left for all"
        if not (self._total and self._done):
            return ""
        left = (self._clock() - self._began) / self._done * (self._total - self._done)
        return f"{duration(left)} left"


class Stages:
    """Says of each stage, when it ends, how long it took; hands everything on to `progress`."""

    def __init__(self, progress: Progress, listeners: list[Callable[[str], None]], journal: Journal | None) -> None:
        self._progress, self._listeners, self._journal = progress, listeners, journal
        self._label, self._note, self._began = "", "", time.monotonic()

    def start(self, label: str, total: int | None = None, work: float = 0.0) -> None:
        self._end()
        self._label, self._note, self._began = label, "", time.monotonic()
        self._progress.start(label, total, work)

    def advance(self, n: int = 1) -> None:
        self._progress.advance(n)

    def note(self, text: str) -> None:
        self._note = text
        self._progress.note(text)

    def say(self, text: str) -> None:
        if self._journal:
            self._journal.write(text)
        self._progress.say(text)

    def remain(self, seconds: float | None) -> None:
        self._progress.remain(seconds)

    def finish(self) -> None:
        self._end()
        self._progress.finish()

    def _end(self) -> None:
        if not self._label:
            return
        line = f"{self._label}: {time.monotonic() - self._began:.1f} s" + (f"; {self._note}" if self._note else "")
        self._label = ""
        for tell in self._listeners:
            tell(line)
