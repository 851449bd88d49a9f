"""The error tree: every error that a user can meet carries its exit code.

An error says what is wrong, where, what was expected, what was found and what to do next. The command line prints
exactly that and exits with `exit_code`; nothing else decides exit codes.

    0 done · 1 a gate failed · 2 usage · 3 unsupported model or data · 4 our fault · 5 environment · 130 interrupted
"""

import errno
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from gpusq_onnx.text import block, printable

HAS_LIMITS = find_spec("resource") is not None
if HAS_LIMITS:
    import resource

MACHINE = (OSError, MemoryError, ImportError)
"""Errors of the machine, which no pass and no model is blamed for: a full disk, no memory, a library that is broken.

A signal in the middle of loading one ends as ImportError, too.
"""
_OUT_OF_MEMORY = (
    "bad_alloc",
    "bad allocation",
    "can't allocate memory",
    "Cannot allocate memory",  # the system's words for errno 12, which onnxruntime quotes
    "Failed to allocate memory",
    "out of memory",
    "can't start new thread",  # Python: there is no room for its stack
)
_NO_ROOM = 1 << 16  # bytes: a file system with less is full
_NO_TEMPORARY = "No usable temporary directory"  # of tempfile, with the number of a missing file
_MARGIN = "    "  # before the further lines of a detail: none of them can pass for a detail of its own


_ROOM = "free some room there, or name another place"
_ALLOWED = "give this user the permission, or name another place"
_OF_THE_SYSTEM = {
    errno.ENOSPC: ("the disk is full", "room for what is written", _ROOM),
    errno.EDQUOT: ("the disk quota is used up", "room for what is written", _ROOM),
    errno.EFBIG: (
        "a file would be larger than is allowed",
        "a limit above the size of what is written",
        "raise the limit (ulimit -f), or name a place on another file system",
    ),
    errno.EROFS: ("the file system is read-only", "one that can be written to", "name another place"),
    errno.EACCES: ("there is no permission", "a file or folder that this user may use", _ALLOWED),
    errno.EPERM: ("it is not permitted", "a file or folder that this user may use", _ALLOWED),
    errno.ENOENT: ("there is no such file or folder", None, "check the path, or name another place"),
}
"""What an error of the operating system is about, what was expected, and the next step."""


class GpusqError(Exception):
    """Base of all errors raised on purpose.

    Args:
        what: one sentence naming the problem and the offending name.
        where: file, node, tensor or option in which it was met.
        expected: what would have been accepted.
        found: what was there instead.
        hint: the next step for the reader.
    """

    exit_code: ClassVar[int] = 4
    title: ClassVar[str] = "internal error"

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        expected: str | None = None,
        found: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.what = what
        self.details = {"where": where, "expected": expected, "found": found, "next": hint}
        super().__init__(str(self))

    def reword(self, change: Callable[[str], str]) -> None:
        """Put every text of the error through `change`."""
        self.what = change(self.what)
        self.details = {key: value and change(str(value)) for key, value in self.details.items()}
        self.args = (str(self),)

    def __str__(self) -> str:
        lines = [printable(self.what)]
        lines += [f"  {key}: {block(str(value), _MARGIN)}" for key, value in self.details.items() if value]
        return "\n".join(lines)


class GateFailed(GpusqError):
    """The work was done and a gate that the caller set (an accuracy, an agreement, a count) was not met."""

    exit_code = 1
    title = "gate failed"


class UsageError(GpusqError):
    """The caller mistyped: missing file, unknown pass, option or key, value out of range, output equal to input."""

    exit_code = 2
    title = "usage error"


class UnsupportedModelError(GpusqError):
    """The model cannot be used: not ONNX, truncated, opset too new, NaN weights, quantised already."""

    exit_code = 3
    title = "unsupported model"


class NothingMatched(UnsupportedModelError):
    """A selector, or a whole pass, found nothing to work on.

    Attributes:
        rows: of a pass, its plan: all that it looked at, each with the reason why it stays as it is.
    """

    title = "nothing matched"
    rows: Sequence[Any] = ()


class SelectorUnmatched(NothingMatched):
    """A selector of the caller's names nothing in the model: a typo, which is an error whatever else is done."""


class UnsupportedDataError(GpusqError):
    """The data cannot be used: wrong shape or type, an empty folder, too many corrupt images."""

    exit_code = 3
    title = "unsupported data"


class PassFailed(GpusqError):
    """A pass broke its own promise; the manager writes a reproducer."""

    exit_code = 4
    title = "pass failed"


class InvariantError(PassFailed):
    """A graph invariant, or a fact established by an earlier pass, no longer holds."""

    title = "invariant broken"


class EnvironmentLacking(GpusqError):
    """TensorRT, a GPU, a compiler or another part of the environment is missing."""

    exit_code = 5
    title = "environment lacks something"

    @classmethod
    def of_the_system(
        cls, error: OSError, where: str | None = None, *, what: str | None = None, hint: str | None = None
    ) -> "EnvironmentLacking":
        """An error of the operating system in words.

        Args:
            where: the file or folder as the user knows it; None: what the error names.
            what, hint: in place of the usual words for an error of this kind.
        """
        found = error.strerror or str(error) or type(error).__name__
        usual, expected, step = _OF_THE_SYSTEM.get(error.errno or 0, (found, None, None))
        if found.startswith(_NO_TEMPORARY):
            usual, step = "there is no folder for temporary files", "set TMPDIR to a folder that has room"
        named = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else None
        return cls(what or usual, where=where or named, expected=expected, found=found, hint=hint or step)


def of_the_machine(error: BaseException) -> BaseException | None:
    """The error of the machine that `error` is, or speaks of; None for another kind.

    onnxruntime and torch tell that memory ran out in words of their own, in exceptions that share no base class;
    `Path.resolve` does so of links that lead back to themselves, before Python 3.13.
    """
    if isinstance(error, MACHINE):
        return error
    if isinstance(error, RuntimeError) and (loop := re.match("Symlink loop from '(.*)'$", str(error), re.DOTALL)):
        return OSError(errno.ELOOP, os.strerror(errno.ELOOP), loop[1])
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or any(words in str(cause) for words in _OUT_OF_MEMORY):
            return MemoryError()
        cause = cause.__cause__
    return None


def of_an_interrupt(error: BaseException) -> bool:
    """Whether `error` is what became of a Ctrl-C: in a lock of the standard library it turns into a RuntimeError."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, KeyboardInterrupt):
        found = found.__cause__ or found.__context__
    return found is not None


def name_the_full_one(error: BaseException | None, places: Sequence[Path]) -> None:
    """Of an error of the operating system that names no file, as `write` raises it, set the file that has no room.

    Args:
        places: files that were being written, or folders; where none of them is full, nothing is set.
    """
    if isinstance(error, OSError) and error.filename is None and HAS_LIMITS:
        with suppress(OSError):  # a place that is gone
            error.filename = next((str(place) for place in places if _takes_no_more(place, error.errno)), None)


def _takes_no_more(place: Path, reason: int | None) -> bool:
    if reason == errno.EFBIG:
        return place.is_file() and place.stat().st_size >= resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    room = os.statvfs(place.parent)
    return reason == errno.ENOSPC and room.f_bavail * room.f_frsize < _NO_ROOM
