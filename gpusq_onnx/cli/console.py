"""What reaches the terminal: results on stdout, everything else on stderr; progress only where somebody watches.

rich is imported when something is drawn, never for `--help`.
"""

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpusq_onnx.cli.options import STDOUT
from gpusq_onnx.files import Staging, staged, write_text
from gpusq_onnx.progress import NullProgress, Progress
from gpusq_onnx.text import printable

EVERY = 30  # seconds between two lines of progress in a log
_GREEN, _YELLOW = 32, 33
_COLOURS = ((r"\bsparse (INT8|FP16|INT4|FP8)\b", _GREEN), (r"\bdense (INT8|FP16|FP32|BF16)\b", _YELLOW))
_UNUSUAL = re.compile(r"[^ -~\n]")


@contextmanager
def open_progress(*, quiet: bool) -> Iterator[Progress]:
    """A progress line on stderr if it is a terminal outside CI, a line every half a minute elsewhere; `quiet`: silence.

    However the block ends, the line is gone then and the cursor is back.
    """
    drawn = sys.stderr.isatty() and not os.environ.get("CI")
    progress: Progress = NullProgress() if quiet else RichProgress() if drawn else LineProgress()
    try:
        yield progress
    finally:
        progress.finish()


class RichProgress:
    """One line with bar, count, time gone and time left; it vanishes when its stage ends."""

    def __init__(self) -> None:
        from rich import progress
        from rich.console import Console

        self._display = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[note]}", markup=False),
            console=Console(stderr=True),
            transient=True,
        )
        self._task: progress.TaskID | None = None

    def start(self, label: str, total: int | None = None) -> None:
        self.finish()
        self._display.start()
        self._task = self._display.add_task(label, total=total, note="")

    def advance(self, n: int = 1) -> None:
        if self._task is not None:
            self._display.advance(self._task, n)

    def note(self, text: str) -> None:
        if self._task is not None:
            self._display.update(self._task, note=text)

    def finish(self) -> None:
        if self._task is not None:
            self._display.remove_task(self._task)
            self._display.stop()
            self._task = None


class LineProgress:
    """For logs: what is done, how far, and the time left for it, every `EVERY` seconds; short work says nothing."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._spoken = clock()
        self._label, self._note = "", ""
        self._began, self._done, self._total = clock(), 0, 0

    def start(self, label: str, total: int | None = None) -> None:
        self._label, self._note, self._done, self._total = label, "", 0, total or 0
        self._began = self._clock()
        self._speak()

    def advance(self, n: int = 1) -> None:
        self._done += n
        self._speak()

    def note(self, text: str) -> None:
        self._note = text

    def finish(self) -> None:
        self._label = ""

    def _speak(self) -> None:
        now = self._clock()
        if now - self._spoken < EVERY or not self._label:
            return
        self._spoken = now
        parts = [self._label]
        if self._total and self._done:
            left = (now - self._began) / self._done * (self._total - self._done)
            parts.append(f"{self._done} of {self._total}, {max(0.0, left):.0f} s left")
        parts += [self._note] if self._note else []
        print(printable("; ".join(parts)), file=sys.stderr, flush=True)  # noqa: T201


def show(text: str = "") -> None:
    """One line or more of the result, to stdout, as text without control characters.

    A reader that goes away (`| head`, a pager) does not end the work.
    """
    _print("\n".join(map(printable, text.split("\n"))))


def _print(text: str) -> None:
    try:
        print(text, flush=True)  # noqa: T201
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show_verdict(lines: Sequence[str]) -> None:
    """A screen of results; on a terminal the kernels in it are coloured, unless NO_COLOR says no."""
    plain = not sys.stdout.isatty() or bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    text = "\n".join(printable(line) for line in lines)
    if plain:
        show(text)
        return
    for pattern, colour in _COLOURS:
        text = re.sub(pattern, lambda found, colour=colour: f"\x1b[{colour}m{found[0]}\x1b[0m", text)  # type: ignore[misc]
    _print(text)


def width() -> int:
    """Columns: the terminal's, or what $COLUMNS says; 80 in a pipe."""
    return shutil.get_terminal_size((80, 24)).columns


def warn(text: str) -> None:
    """A warning, to stderr: seen whatever `--quiet` and `--json` say."""
    print(f"warning: {printable(text)}", file=sys.stderr)  # noqa: T201


def show_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns on stdout. A terminal gets them folded to its width; a pipe gets each row on one line, nothing cut."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 10_000, highlight=False, markup=False)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in header:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*map(printable, row))
    with console.capture() as capture:
        console.print(table)
    show("\n".join(line.rstrip() for line in capture.get().splitlines()))


def write_json(document: Mapping[str, Any], target: Path, results: Staging | None = None) -> None:
    """The document as JSON into the file `target`, or to stdout for `-`."""
    text = json_text(document)
    if target == STDOUT:
        show(text)
    else:
        write_text(target, f"{text}\n", results)


def json_text(document: Mapping[str, Any]) -> str:
    """The document as JSON that any reader, viewer and terminal takes: what does not print is escaped."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    return _UNUSUAL.sub(lambda found: found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1], text)


def publish(
    document: Mapping[str, Any],
    digest: str,
    *,
    report: Path | None,
    json_target: Path | None,
    results: Staging | None = None,
) -> None:
    """Write what `--report` (JSON, and the digest beside it as Markdown) and `--json` ask for."""
    if results is None:
        with staged() as own:
            return publish(document, digest, report=report, json_target=json_target, results=own)
    if report:
        write_json(document, report, results)
        write_text(report.with_suffix(".md"), digest, results)
    if json_target:
        write_json(document, json_target, results)
    return None
