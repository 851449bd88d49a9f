"""Feeds from a Polygraphy data-loader script: FILE.py with `load_data()`, or FILE.py:function.

The function returns or yields feed dicts {input name: array}, and is called afresh each time the data is gone through.
As in Polygraphy, one feed is one run of the model, whatever batch size the caller prefers; arrays go in as they are.
`samples` counts rows of axis 0 and is rounded up to whole feeds. Rows are samples, which training may join, only where
axis 0 is one batch: as the model declares it, and in all feeds, which then differ in nothing else.

Limits: no labels, and no reading by index. A script that draws unseeded random numbers gives another digest, and
another model, each time.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.source import (
    Batch,
    InputSpec,
    Source,
    WholeFeeds,
    check_finite,
    differing,
    no_common_batch,
    ready_made,
    whole_feed,
)
from gpusq_onnx.errors import GpusqError, UnsupportedDataError, UsageError


class ScriptSource(Source):
    """The feeds of `function` in the script `path`; the first one is fetched and checked on opening.

    Raises UsageError when the script has no such function; UnsupportedDataError when it fails, yields nothing, or
    yields feeds that do not fit the model's inputs.
    """

    kind = "script"
    random_access = False

    def __init__(self, path: Path, function: str, options: DataOptions, inputs: Sequence[InputSpec]) -> None:
        self._path = path
        self._inputs = inputs
        self._samples = options.samples
        self._notes = ready_made(options, "a script's tensors")
        module = _import(path)
        found: Any = getattr(module, function, None)
        if not callable(found):
            own = [name for name, _ in inspect.getmembers(module, inspect.isfunction) if not name.startswith("_")]
            raise UsageError(
                f"{path} has no function {function}()",
                where="--data",
                expected="load_data(), or another name as FILE.py:name",
                found=", ".join(own) or "no functions",
            )
        self._function: Callable[[], Iterable[Any]] = found
        if next(self.batches(1), None) is None:
            raise UnsupportedDataError(f"{function}() in {path} yields nothing", expected="one or more feed dicts")

    def __len__(self) -> int:
        return self._survey.rows

    @property
    def notes(self) -> list[str]:
        return list(self._notes)

    def digest(self) -> str:
        return self._survey.digest

    @property
    def whole(self) -> WholeFeeds | None:
        found = self._survey
        why = found.apart or found.resized
        return WholeFeeds(found.feeds, why, bool(found.resized)) if why else None

    def batches(self, batch: int) -> Iterator[Batch]:
        rows = 0
        feeds = _guarded(self._path, self._function)
        for number, feed in enumerate(feeds):
            with _blamed(self._path):
                ready = self._checked(feed, f"{self._path}, feed {number}")
            rows += ready.size
            yield ready
            if self._samples is not None and rows >= self._samples:
                return

    @cached_property
    def _survey(self) -> _Survey:
        """What one pass over the feeds finds, made when first asked for."""
        rows, feeds, content = 0, 0, hashlib.sha256()
        apart, resized, first = no_common_batch(self._inputs, named=True), "", dict[str, tuple[int, ...]]()
        for batch in self.batches(1):
            rows, feeds = rows + batch.size, feeds + 1
            for name, array in sorted(batch.feed.items()):
                content.update(f"{name} {array.dtype.str} {array.shape}\0".encode())
                content.update(array.tobytes())
            shapes = {name: array.shape for name, array in batch.feed.items()}
            first = first or shapes
            apart = apart or differing(shape[0] for shape in shapes.values())
            resized = resized or _resized(first, shapes)
        return _Survey(rows, feeds, content.hexdigest(), apart, resized)

    def _checked(self, feed: object, where: str) -> Batch:
        names = [spec.name for spec in self._inputs]
        if not isinstance(feed, Mapping) or set(feed) != set(names):
            raise UnsupportedDataError(
                "the script's feed does not name the model's inputs",
                where=where,
                expected=f"a dict with the keys {', '.join(names)}",
                found=f"keys {', '.join(map(str, feed))}" if isinstance(feed, Mapping) else type(feed).__name__,
            )
        arrays = {name: np.asarray(feed[name]) for name in names}
        for spec in self._inputs:
            array = arrays[spec.name]
            if array.dtype != spec.dtype or not spec.takes(array.shape) or array.size == 0:
                raise UnsupportedDataError(
                    f"the script's array does not fit the model's input {spec.name!r}",
                    where=where,
                    expected=str(spec),
                    found=f"{array.dtype.name} {list(array.shape)}",
                )
            check_finite(spec.name, array, where)
        return whole_feed(arrays)


@dataclass(frozen=True)
class _Survey:
    """Rows, feeds and digest; what keeps feeds apart along axis 0, and how they differ in size, "" for nothing."""

    rows: int
    feeds: int
    digest: str
    apart: str
    resized: str


def _resized(first: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """How these shapes differ from the first feed's, besides axis 0; "" where they do not."""
    other = next((name for name, shape in shapes.items() if shape[1:] != first[name][1:]), None)
    return "" if other is None else f"{other} differs in size: {list(first[other])} and {list(shapes[other])}"


def _import(path: Path) -> ModuleType:
    """The script as a module, executed with its folder on sys.path as `python FILE.py` would have it.

    Compiled here and not by the import system, which would leave a __pycache__ beside the user's script.
    """
    module = ModuleType(f"gpusq_onnx_script_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses and pickle look a module up by name
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        with _blamed(path):
            exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    finally:
        sys.path.remove(folder)
    return module


def _guarded(path: Path, function: Callable[[], Iterable[Any]]) -> Iterator[Any]:
    """The feeds; what the script raises becomes UnsupportedDataError."""
    with _blamed(path):
        feeds = iter(function())
    while True:
        with _blamed(path):
            feed = next(feeds, _END)
        if feed is _END:
            return
        yield feed


_END = object()


@contextmanager
def _blamed(path: Path) -> Iterator[None]:
    """Around the script's own code: whatever it raises, SystemExit and exceptions of its own making too."""
    try:
        yield
    except (KeyboardInterrupt, GpusqError):
        raise
    except BaseException as error:
        raise _failed(path, error) from error


def _failed(path: Path, error: BaseException) -> UnsupportedDataError:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    return UnsupportedDataError(
        f"the data script {path} failed",
        where=f"line {frames[-1].lineno}: {frames[-1].line}" if frames else None,
        found="".join(traceback.format_exception_only(error)).strip(),
    )
