"""Does onnxruntime load and run this file, and to what result? Asked of a process of its own.

    default        as `onnxruntime.InferenceSession(path)` does it, all optimisations on: how the file will be opened
    unoptimised    every node as it is written
    in order       optimised, nodes in the file's order: what probes look at is freed after them
    exact          optimised, Q/DQ as written (`session.disable_quant_qdq=1`)
    precise        optimised, with integer kernels that do not saturate where the CPU has no VNNI, and with data
                   that stays in FP32 beside 4-bit weights

A crash of onnxruntime (a signal, an exhausted memory) ends the child and is an outcome here; the next way has a new
one. Each way costs one load and one run. `Trials.start` has the process ready, about half a second, before it is
needed. Ways of a large file go at once, each in a process of its own, where memory allows that: loading a Q/DQ graph
and running it unoptimised are the work of one core each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.graph import io
from gpusq_onnx.runtime.child import Worker
from gpusq_onnx.runtime.machine import free_memory, usable_cpus
from gpusq_onnx.runtime.ort import Feed
from gpusq_onnx.scratch import Scratch

if TYPE_CHECKING:
    from gpusq_onnx.runtime.trial_worker import TrialRequest

Way = Literal["default", "unoptimised", "in order", "exact", "precise"]
WAYS: tuple[Way, ...] = ("default", "unoptimised")


@dataclass(frozen=True)
class Trial:
    """One way of running a model.

    Attributes:
        outcome: "ran"; "loaded", where no batch could be made for its inputs; "refused" (to load); "failed" (to run);
            "died": the process ended.
        said: onnxruntime's message, or how the process ended and when.
        outputs: by name, where it ran; those of types that numpy has.
        seconds: of the run, the session's first.
    """

    way: Way
    outcome: Literal["ran", "loaded", "refused", "failed", "died"]
    said: str = ""
    outputs: dict[str, NDArray[Any]] = field(default_factory=dict)
    seconds: float | None = None

    @property
    def went(self) -> bool:
        """Whether nothing went wrong."""
        return self.outcome in ("ran", "loaded")

    def __str__(self) -> str:
        verbs = {"refused": "refuses to load it", "failed": "fails to run it", "died": "crashes"}
        return f"a session {_NAMES[self.way]} {verbs.get(self.outcome, self.outcome)}: {self.said}"


class Attempt(Protocol):
    """Tries out a model file in these ways, with one feed: see `Trials.try_out`."""

    def __call__(self, path: Path, ways: Sequence[Way], /, *, size: int | None = None) -> list[Trial]:
        """What became of each way."""
        ...


_LARGE = 64 << 20  # bytes: a smaller file is tried sooner than another process has started
_TOGETHER = 2 << 30  # bytes that sessions at once may take
_NAMES = {
    "default": "with onnxruntime's defaults",
    "unoptimised": "without optimisations",
    "in order": "that keeps to the order of the nodes",
    "exact": "that leaves Q/DQ as they are",
    "precise": "with precise kernels",
}


class Trials:
    """Tries out models in processes that stay, each started when it is first needed, or before by `start`."""

    def __init__(self) -> None:
        self._workers: list[Worker | None] = [None]

    def __enter__(self) -> Trials:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for index in range(len(self._workers)):
            self._end(index)

    def start(self, size: int = 0) -> Trials:
        """Have a process ready; or as many as `WAYS`, where these will go at once for a model of so many bytes."""
        for index in range(len(WAYS) if _at_once(size, len(WAYS)) else 1):
            self._started(index)
        return self

    def try_out(
        self, path: Path, feed: Feed | None, ways: Sequence[Way] = WAYS, *, size: int | None = None
    ) -> list[Trial]:
        """Load and run the model at `path` in each way.

        Args:
            feed: arrays by input name; None: random ones of the inputs' shapes, for one sample.
            size: bytes of the model with its weights; None: of the file and of `PATH.data`.
        """
        if size is None:
            size = sum(part.stat().st_size for part in (path, io.data_beside(path)) if part.is_file())
        if len(ways) > 1 and _at_once(size, len(ways)):
            with ExitStack() as stack:
                begun = [stack.enter_context(self._begun(index, path, feed, [way])) for index, way in enumerate(ways)]
                return [trial for wait in begun for trial in wait()]
        trials: list[Trial] = []
        while len(trials) < len(ways):  # a child that died tells nothing about the ways after
            with self._begun(0, path, feed, ways[len(trials) :]) as wait:
                trials += wait()
        return trials

    @contextmanager
    def beside(self, path: Path, feed: Feed | None, way: Way) -> Iterator[Callable[[], Trial]]:
        """Try it out in one way while the block does something else; what the block gets waits for the end."""
        with self._begun(0, path, feed, [way]) as wait:
            yield lambda: wait()[0]

    def with_feed(self, feed: Feed | None) -> Attempt:
        """`try_out` with this feed."""
        return lambda path, ways, size=None: self.try_out(path, feed, ways, size=size)

    @contextmanager
    def _begun(
        self, index: int, path: Path, feed: Feed | None, ways: Sequence[Way]
    ) -> Iterator[Callable[[], list[Trial]]]:
        """Ways that a worker tries in turn, until one ends it."""
        worker, waits = self._started(index), True

        def wait() -> list[Trial]:
            nonlocal waits
            found, end = worker.receive(scratch)
            waits = end is not None
            return _found(found, end, ways, scratch)

        with Scratch() as scratch:
            try:
                worker.send(_request(path, feed, ways, scratch), scratch)
                yield wait
            finally:
                if waits:  # it died, or nobody wants to know: it must not write where a folder is being removed
                    self._end(index)

    def _started(self, index: int) -> Worker:
        self._workers += [None] * (index + 1 - len(self._workers))
        worker = self._workers[index] = self._workers[index] or Worker("gpusq_onnx.runtime.trial_worker")
        return worker

    def _end(self, index: int) -> None:
        worker, self._workers[index] = self._workers[index], None
        if worker is not None:
            worker.__exit__(None, None, None)


def _at_once(size: int, ways: int) -> bool:
    """Whether so many sessions on a file of `size` bytes are worth a process each, and fit: each takes twice that."""
    return size >= _LARGE and usable_cpus() > 1 and 2 * size * ways <= min(_TOGETHER, free_memory() // 2)


def _request(path: Path, feed: Feed | None, ways: Sequence[Way], scratch: Path) -> TrialRequest:
    stored = scratch / "feed.npz"
    if feed is not None:
        np.savez(stored, **feed)  # type: ignore[arg-type]  # numpy's stub knows no keyword arrays
    return {
        "model": str(path.resolve()),
        "feed": str(stored) if feed is not None else "",
        "ways": list(ways),
        "outputs": str(scratch),
        "site": None,
        "answer": "",
    }


def _found(found: dict[str, Any], end: str | None, ways: Sequence[Way], scratch: Path) -> list[Trial]:
    trials: list[Trial] = []
    for way in ways:
        answer = found.get(way, {"outcome": "died", "said": "before it began"})
        if answer["outcome"] == "died":
            return [*trials, Trial(way, "died", f"it {end} {answer['said']}")]
        if answer["outcome"] != "ran":
            trials.append(Trial(way, answer["outcome"], answer["said"]))
            continue
        with np.load(scratch / f"{way}.npz") as file:
            outputs = {name: file[name] for name in file.files}
        trials.append(Trial(way, "ran", "", outputs, float(answer["said"])))
    return trials
