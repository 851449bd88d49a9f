"""Files that appear whole or not at all.

    staged     results of one command: all are written, then all get their names, or none does
    into       the results of a command, or of a block alone
    atomic_write   the same for files that are written in one place

Results are written in a scratch folder beside their target, so that naming them is a rename on one file system.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import BinaryIO

from gpusq_onnx.errors import EnvironmentLacking, UsageError, name_the_full_one
from gpusq_onnx.scratch import HAS_LOCKS, Scratch, surely

_SYNC_FILE_RANGE_WRITE = 2  # of linux/fs.h


def writable_by_all(path: Path) -> bool:
    """Whether any user of the machine may change what lies at `path`."""
    return os.name == "posix" and bool(path.stat().st_mode & 0o002)


def foreign(path: Path) -> bool:
    """Whether somebody else than this user or the administrator may have made what lies at `path`."""
    return writable_by_all(path) or (os.name == "posix" and path.stat().st_uid not in (0, os.geteuid()))


def made_folders(folder: Path) -> list[Path]:
    """Make a folder and those above it; returns the ones that were not there, the outermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()][::-1]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


@contextmanager
def present(folder: Path) -> Iterator[None]:
    """Make a folder, and those above it, for the block; of them, what is empty at its end goes again."""
    made = made_folders(folder)
    try:
        yield
    finally:
        _remove_empty(made)


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove those of `folders`, the outermost first, that hold nothing."""
    for made in reversed(folders):
        with contextlib.suppress(OSError):  # something lies in it now
            made.rmdir()


def no_file_at(path: Path) -> str | None:
    """What lies at `path` and is no file, in words; None where a file lies there, or nothing."""
    if not path.exists() or path.is_file():
        return None
    return "a folder" if path.is_dir() else "a device or a pipe"


def same_file(one: Path, other: Path) -> bool:
    """Whether two names are of one file: by their paths, through links, or as hard links."""
    return one.resolve() == other.resolve() or (one.exists() and other.exists() and one.samefile(other))


def require_apart(result: Path, inputs: Iterable[Path], what: str, hint: str = "name another file with -o") -> None:
    """Raise UsageError, which says `what`, where a result would take the place of a file that is read."""
    if any(same_file(result, path) for path in inputs):
        raise UsageError(what, where=str(result), hint=hint)


def require_place(path: Path, what: str) -> None:
    """Refuse a place where `what` cannot be written, before the work starts.

    Raises:
        UsageError: the nearest thing above `path` that exists is no folder.
        EnvironmentLacking: it is one, and this user may make nothing in it.
    """
    nearest = next((above for above in path.parents if os.path.exists(above)), Path())
    if not nearest.is_dir():
        raise UsageError(f"no folder can be made for {what}", where=str(nearest), found="a file")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise EnvironmentLacking(
            f"there is no permission to write {what}",
            where=str(nearest.resolve()),
            expected="a folder that this user may write to",
            hint="name another place",
        )


class Staging:
    """Results on their way: `place` says where to write a target until `commit` gives all of them their names."""

    def __init__(self) -> None:
        self._folders: dict[Path, Scratch] = {}
        self._made: list[Path] = []
        self._targets: list[tuple[bool, Path, Path]] = []
        self._undo: list[Callable[[], None]] = []
        self._afterwards: list[Callable[[], None]] = []

    def place(self, target: Path, *, last: bool = False) -> Path:
        """Where to write what becomes `target`: its own name, in a scratch folder beside it.

        Args:
            target: the folders above it are made; those that stay empty go again.
            last: named after all others: where it is there, everything is.

        Raises:
            UsageError, EnvironmentLacking: see `require_place`.
        """
        if target.parent not in self._folders:
            require_place(target, repr(target.name))
            self._open(target)
        place = self._folders[target.parent].path / target.name
        if all(place != known for _, known, _ in self._targets):
            self._targets.append((last, place, target))
        return place

    def _open(self, target: Path) -> None:
        try:
            self._made += made_folders(target.parent)
            self._folders[target.parent] = Scratch(target.parent)
        except OSError as error:
            what = f"{target.name!r} cannot be written"
            raise EnvironmentLacking.of_the_system(error, str(target.parent.absolute()), what=what) from error

    def afterwards(self, act: Callable[[], None]) -> None:
        """Call `act` once the results have their names."""
        self._afterwards.append(act)

    def commit(self) -> None:
        """Give every result its name; `rollback` can still take the names back.

        Raises:
            OSError: the folder cannot be written, or something that is no file has the name.
        """
        ordered = [(place, target) for _, place, target in sorted(self._targets, key=lambda entry: entry[0])]
        self._targets.clear()
        for place, _ in ordered:
            _flush(place)
        if ordered and any(os.path.lexists(target) for _, target in ordered[:-1]):
            self._keep(*ordered[-1], aside=True)  # whenever the process ends, no old model lies beside new data
        for place, target in ordered:
            self._keep(place, target)
            os.replace(place, target)
        for folder in self._folders:
            _flush(folder)

    def rollback(self) -> None:
        """Leave all names as they were, and forget what was to be done afterwards."""
        self._afterwards.clear()
        while self._undo:
            with contextlib.suppress(OSError):
                self._undo[-1]()  # does nothing where it was done already
            self._undo.pop()

    def _keep(self, place: Path, target: Path, *, aside: bool = False) -> None:
        """Have a way back to what `target` is now: a second name beside `place`; the only one meanwhile, if `aside`."""
        if not os.path.lexists(target):
            self._undo.append(partial(target.unlink, missing_ok=True))
            return
        kept = place.with_name(f"{len(self._undo)}.before")
        self._undo.append(partial(os.replace, kept, target))
        if aside:
            _put_aside(target, kept)
            return
        try:
            os.link(target, kept, follow_symlinks=False)
        except (OSError, NotImplementedError):  # none on this file system, or of a file that another user owns
            _put_aside(target, kept)

    def finish(self) -> None:
        """Remove what was not named, and do what was to be done afterwards."""
        for folder in self._folders.values():
            folder.remove()
        _remove_empty(self._made)
        for act in self._afterwards:
            act()


@contextmanager
def staged() -> Iterator[Staging]:
    """Results that get their names together when the block ends well, and vanish when it does not.

    A block that calls `commit` itself, and fails after it, leaves nothing either.
    """
    staging = Staging()
    try:
        yield staging
        staging.commit()
    except BaseException as error:
        name_the_full_one(error, [place for _, place, _ in staging._targets])
        surely(staging.rollback)
        raise
    finally:
        staging.finish()


def into(results: Staging | None) -> AbstractContextManager[Staging]:
    """`results`, left to the caller to commit; None: results of the block alone, named when it ends well."""
    return staged() if results is None else nullcontext(results)


@contextmanager
def atomic_write(*paths: Path) -> Iterator[Sequence[BinaryIO]]:
    """Binary files that become `paths`, in this order, when the block ends well, and vanish when it does not."""
    with staged() as staging, ExitStack() as stack:
        yield [stack.enter_context(staging.place(path).open("xb")) for path in paths]


def write_text(path: Path, text: str, results: Staging | None = None) -> None:
    """Write a small file, all or nothing; into `results`, with those of the same command."""
    with into(results) as staging:
        staging.place(path).write_text(text, encoding="utf-8", errors="backslashreplace")


def begin_flush(file: BinaryIO) -> None:
    """Have the system begin to bring what was written to the disk: a hint, after which `commit` waits for less."""
    file.flush()
    if sys.platform == "linux":
        import ctypes  # not for --help

        whole = ctypes.c_int64(0), ctypes.c_int64(0)
        with contextlib.suppress(AttributeError):  # a libc without it
            ctypes.CDLL(None).sync_file_range(file.fileno(), *whole, _SYNC_FILE_RANGE_WRITE)


def _put_aside(target: Path, kept: Path) -> None:
    try:
        os.replace(target, kept)
    except PermissionError as error:
        what, hint = f"there is no permission to replace {target.name!r}", "name another file"
        raise EnvironmentLacking(what, where=str(target), found=str(error.strerror), hint=hint) from error


def _flush(path: Path) -> None:
    """Bring a file or folder to the disk."""
    if path.is_dir() and not HAS_LOCKS:
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(handle)
