"""Does onnxruntime load and run this file, and to what result? Asked of a process of its own.

    default        as `onnxruntime.InferenceSession(path)` does it, all optimisations on: how the file will be opened
    unoptimised    every node as it is written
    in order       optimised, nodes in the file's order: what probes look at is freed after them
    exact          optimised, Q/DQ as written (`session.disable_quant_qdq=1`)
    precise        optimised, with integer kernels that do not saturate where the CPU has no VNNI

A crash of onnxruntime (a signal, an exhausted memory) ends the child and is an outcome here; the next way has a new
one. Each way costs one load and one run. `Trials.start` has the process ready, about half a second, before it is
needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.files import Scratch
from gpusq_onnx.runtime.child import Worker
from gpusq_onnx.runtime.ort import Feed
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


Attempt = Callable[[Path, Sequence[Way]], list[Trial]]
"""Tries out a model file in these ways, with one feed."""

_NAMES = {
    "default": "with onnxruntime's defaults",
    "unoptimised": "without optimisations",
    "in order": "that keeps to the order of the nodes",
    "exact": "that leaves Q/DQ as they are",
    "precise": "with precise integer kernels",
}


class Trials:
    """Tries out models, all in one process, which is started when it is first needed, or before by `start`."""

    def __init__(self) -> None:
        self._worker: Worker | None = None

    def __enter__(self) -> Trials:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def start(self) -> Trials:
        """Have a process ready."""
        self._worker = self._worker or Worker("gpusq_onnx.runtime.trial_worker")
        return self

    def try_out(self, path: Path, feed: Feed | None, ways: Sequence[Way] = WAYS) -> list[Trial]:
        """Load and run the model at `path` in each way.

        Args:
            feed: arrays by input name; None: random ones of the inputs' shapes, for one sample.
        """
        trials: list[Trial] = []
        while len(trials) < len(ways):  # a child that died tells nothing about the ways after
            self.start()
            assert self._worker is not None
            with Scratch() as scratch:
                trials += _tried(self._worker, path, feed, ways[len(trials) :], scratch)
            if trials[-1].outcome == "died":
                self._end()
        return trials

    def with_feed(self, feed: Feed | None) -> Attempt:
        """`try_out` with this feed."""
        return lambda path, ways: self.try_out(path, feed, ways)

    def _end(self) -> None:
        if self._worker is not None:
            self._worker.__exit__(None, None, None)
            self._worker = None


def _tried(worker: Worker, path: Path, feed: Feed | None, ways: Sequence[Way], scratch: Path) -> list[Trial]:
    stored = scratch / "feed.npz"
    if feed is not None:
        np.savez(stored, **feed)  # type: ignore[arg-type]  # numpy's stub knows no keyword arrays
    request: TrialRequest = {
        "model": str(path.resolve()),
        "feed": str(stored) if feed is not None else "",
        "ways": list(ways),
        "outputs": str(scratch),
        "site": None,
        "answer": "",
    }
    found, end = worker.ask(request, scratch)
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
