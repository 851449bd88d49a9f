"""The options that are taken before or after any verb: `-v`, `--debug`, `--log-file`, `--max-memory`, `--force`.

The journal has a line with the time for the command, for each stage with its seconds, for warnings, and for how it
ended; of an error, the traceback. It is written line by line and appended to: what a killed run had done is there.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

from typer import Option

from gpusq_onnx.cli.memory import parse
from gpusq_onnx.errors import UsageError
from gpusq_onnx.text import printable


class Journal:
    """Lines with the time, appended to a file.

    Raises:
        UsageError: it cannot be written, or is a file of another kind: a line at the end of a model would break it.
    """

    def __init__(self, path: Path) -> None:
        from gpusq_onnx.files import require_place
        from gpusq_onnx.marks import first_line, in_first_line

        self._path = path
        if not path.exists():
            require_place(path, "the log")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            ends = path.is_file() and path.stat().st_size > 0
            if ends and not in_first_line(path):
                raise UsageError(
                    "the file is no log of gpusq-onnx, and would be appended to",
                    where=f"--log-file {path}",
                    hint="name a file that is not there yet, or a log of an earlier run",
                )
            self._append("" if ends else first_line("what was run, and how it ended"))
        except OSError as error:
            raise UsageError("the log cannot be written", where=f"--log-file {path}", found=str(error)) from error

    def write(self, text: str) -> None:
        """One line."""
        self._append(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {printable(text)}\n")

    def write_error(self, error: BaseException) -> None:
        """The traceback, a line each."""
        for line in "".join(traceback.format_exception(error)).splitlines():
            self.write(line)

    def _append(self, text: str) -> None:
        with open(self._path, "a", encoding="utf-8", errors="backslashreplace", opener=_without_waiting) as file:
            file.write(text)


def _without_waiting(path: str, flags: int) -> int:
    """Open a file; a pipe that nobody reads is an error, and nothing to wait for."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o666)


@dataclass
class JournalSettings:
    """What was said for any verb, and the command line that it was said on."""

    command: str = ""
    debug: bool = False
    verbose: bool = False
    journal: Journal | None = None
    max_memory: int | None = None
    force: bool = False


_CURRENT: ContextVar[JournalSettings] = ContextVar("settings")


@contextmanager
def one_call(command: str) -> Iterator[JournalSettings]:
    """New settings, for one command line; `settings` gives them to whoever asks while the block lasts."""
    token = _CURRENT.set(JournalSettings(command))
    try:
        yield _CURRENT.get()
    finally:
        _CURRENT.reset(token)


def settings() -> JournalSettings:
    """Those of the command line under way; the defaults where there is none."""
    return _CURRENT.get(JournalSettings())


def _debug(wanted: bool) -> None:
    settings().debug |= bool(wanted)


def _verbose(wanted: bool) -> None:
    settings().verbose |= bool(wanted)


def _force(wanted: bool) -> None:
    settings().force |= bool(wanted)


def _log(path: Path | None) -> None:
    if path is not None:
        journal = settings().journal = Journal(path)
        journal.write(settings().command)


def _memory(text: str | None) -> None:
    if text is not None:
        settings().max_memory = parse(text)


# Eager: what goes wrong with another option is reported as they say, wherever they are given.
ANYWHERE = "For any verb, before or after it"
_anywhere = partial(Option, is_eager=True, show_default=False, rich_help_panel=ANYWHERE)


@dataclass(frozen=True)
class Anywhere:
    """The options that every verb has; they act when they are read."""

    verbose: Annotated[
        bool, _anywhere("--verbose", "-v", callback=_verbose, help="Report each stage when it ends, and its time.")
    ] = False
    debug: Annotated[bool, _anywhere("--debug", callback=_debug, help="Show the traceback of an error.")] = False
    log_file: Annotated[
        Path | None,
        _anywhere(
            "--log-file", metavar="FILE", callback=_log, help="Append stages, warnings and errors to FILE, with times."
        ),
    ] = None
    max_memory: Annotated[
        str | None,
        _anywhere("--max-memory", metavar="N[M|G]", callback=_memory, help="Refuse what needs more; stop at this."),
    ] = None
    force: Annotated[bool, _anywhere("--force", callback=_force, help="Write over files that are not ours.")] = False
