"""Scratch folders that nothing outlives, of one process each.

A scratch folder's name cannot be guessed, nobody else may enter, links are not followed. It is locked as long as its
process lives, whatever machine or container that runs in. Who makes another one beside it removes those whose lock is
free: what a killed run left.

Limits: where the system has no `flock` (Windows), leftovers of killed runs stay.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

from gpusq_onnx.errors import GpusqError, name_the_full_one
from gpusq_onnx.interruption import held

HAS_LOCKS = find_spec("fcntl") is not None
if HAS_LOCKS:
    import fcntl

PREFIX = ".gpusq-onnx-"
_IN_SCRATCH = re.compile(rf"[^\s'\"]*{re.escape(PREFIX)}\w+(/[^\s'\":,;]+)*")


class Scratch:
    """A new folder, removed with all that is in it when the block ends, or the object, or the process.

    Args:
        where: the folder to make it in; None: the system's folder for temporary files.
    """

    def __init__(self, where: Path | None = None) -> None:
        parent = Path(tempfile.gettempdir()) if where is None else where
        sweep(parent)
        lock = None
        with held():  # or a folder is there, and nobody knows it
            while lock is None:
                self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
                lock = _lock(self.path)
            self._remove = weakref.finalize(self, _removed, self.path, lock)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        name_the_full_one(error, [self.path])
        self.remove()

    def remove(self) -> None:
        """Remove it now."""
        self._remove()


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Around work on `name` that goes by copies in scratch folders: errors from it say `name`, not a path that is gone.

    The innermost block counts.
    """
    try:
        yield
    except GpusqError as error:
        error.reword(lambda text: _IN_SCRATCH.sub(lambda found: name, text))
        raise


def sweep(parent: Path) -> None:
    """Remove the scratch folders in `parent` that a process of this user left when it was killed."""
    if not HAS_LOCKS:
        return
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(PREFIX)]
        for name in names:
            with contextlib.suppress(OSError):
                _sweep_one(parent / name)


def _sweep_one(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(handle).st_uid == os.geteuid():
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(handle)


def _lock(folder: Path) -> int | None:
    """Lock a new folder: a handle (-1 where there are no locks); None where another process has swept it already."""
    if not HAS_LOCKS:
        return -1
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    with contextlib.suppress(OSError):  # a file system without locks: nobody else can take it either
        fcntl.flock(handle, fcntl.LOCK_EX)
    if folder.exists():
        return handle
    os.close(handle)
    return None


def _removed(folder: Path, lock: int) -> None:
    try:
        surely(partial(shutil.rmtree, folder, ignore_errors=True))
    finally:
        if lock >= 0:
            os.close(lock)


def surely(act: Callable[[], None]) -> None:
    """Do `act`, and once more where a signal comes in the middle: no second one is listened to."""
    try:
        act()
    except BaseException:
        act()
        raise
