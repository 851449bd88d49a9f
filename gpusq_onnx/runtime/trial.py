"""Does onnxruntime load and run this file, and to what result? Asked of a process of its own.

    default        as `onnxruntime.InferenceSession(path)` does it, all optimisations on: how the file will be opened
    unoptimised    every node as it is written
    in order       optimised, nodes in the file's order: what probes look at is freed after them
    exact          optimised, Q/DQ as written (`session.disable_quant_qdq=1`)
    precise        optimised, with integer kernels that do not saturate where the CPU has no VNNI

A crash of onnxruntime (a signal, an exhausted memory) ends the child and is an outcome here. Each way costs one load
and one run; both together one start of a process, about half a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.files import Scratch
from gpusq_onnx.runtime.child import ask
from gpusq_onnx.runtime.ort import Feed
from gpusq_onnx.runtime.trial_worker import Request

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
    """

    way: Way
    outcome: Literal["ran", "loaded", "refused", "failed", "died"]
    said: str = ""
    outputs: dict[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def went(self) -> bool:
        """Whether nothing went wrong."""
        return self.outcome in ("ran", "loaded")

    def __str__(self) -> str:
        verbs = {"refused": "refuses to load it", "failed": "fails to run it", "died": "crashes"}
        return f"a session {_NAMES[self.way]} {verbs.get(self.outcome, self.outcome)}: {self.said}"


_NAMES = {
    "default": "with onnxruntime's defaults",
    "unoptimised": "without optimisations",
    "in order": "that keeps to the order of the nodes",
    "exact": "that leaves Q/DQ as they are",
    "precise": "with precise integer kernels",
}


def try_out(path: Path, feed: Feed | None, ways: Sequence[Way] = WAYS) -> list[Trial]:
    """Load and run the model at `path` in each way.

    Args:
        feed: arrays by input name; None: random ones of the inputs' shapes, for one sample.
    """
    trials: list[Trial] = []
    while len(trials) < len(ways):  # a child that died tells nothing about the ways after
        with Scratch() as scratch:
            trials += _child(path, feed, ways[len(trials) :], scratch)
    return trials


def _child(path: Path, feed: Feed | None, ways: Sequence[Way], scratch: Path) -> list[Trial]:
    stored = scratch / "feed.npz"
    if feed is not None:
        np.savez(stored, **feed)  # type: ignore[arg-type]  # numpy's stub knows no keyword arrays
    request: Request = {
        "model": str(path.resolve()),
        "feed": str(stored) if feed is not None else "",
        "ways": list(ways),
        "outputs": str(scratch),
        "site": None,
        "answer": "",
    }
    reply = ask("gpusq_onnx.runtime.trial_worker", request, scratch, None)
    trials: list[Trial] = []
    for way in ways:
        answer = reply.answer.get(way, {"outcome": "died", "said": "before it began"})
        if answer["outcome"] == "died":
            return [*trials, Trial(way, "died", f"it {reply.end} {answer['said']}")]
        outputs: dict[str, NDArray[Any]] = {}
        if answer["outcome"] == "ran":
            with np.load(scratch / f"{way}.npz") as file:
                outputs = {name: file[name] for name in file.files}
        trials.append(Trial(way, answer["outcome"], answer["said"], outputs))
    return trials
