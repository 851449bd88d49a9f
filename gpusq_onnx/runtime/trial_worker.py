"""The child process in which onnxruntime meets a model first, so that its crash is not ours.

`trial.Trials` starts it. It loads the model in each of the ways asked for, one session at a time, runs the one batch,
and leaves the outputs in a file a way; its answer grows with each step, so that a crash has a place.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.errors import GpusqError
from gpusq_onnx.runtime.bench.backend import random_feed
from gpusq_onnx.runtime.child import serve
from gpusq_onnx.runtime.ort import Session, numbers

MEMORY = "there is not enough memory"


class TrialRequest(TypedDict):
    """What the parent asks: `feed` is an .npz with the batch, empty for a random one; `outputs` a folder."""

    model: str
    feed: str
    ways: list[str]
    outputs: str
    site: str | None
    answer: str


def main() -> None:
    """Answer the requests, onnxruntime at hand when the first one comes."""
    serve(_work, "onnxruntime")


def _work(request: TrialRequest) -> Iterator[dict[str, dict[str, str]]]:
    """Of each way its outcome, as in `trial.Trial`, and what was said (of a run, its seconds); the last counts."""
    answer: dict[str, dict[str, str]] = {}
    for way in request["ways"]:
        for outcome, said in _steps(request, way):
            answer[way] = {"outcome": outcome, "said": said}
            yield answer


def _steps(request: TrialRequest, way: str) -> Iterator[tuple[str, str]]:
    yield "died", "while loading it"
    try:
        session = Session(
            request["model"],
            optimize=way != "unoptimised",
            exact_qdq=way == "exact",
            precise=way == "precise",
            file_order=way == "in order",
            prepack=way != "unoptimised",
        )
    except (GpusqError, MemoryError) as error:
        yield "refused", _said(error)
        return
    yield "died", "while running it"
    try:
        feed = _feed(request["feed"], session)
    except GpusqError as error:
        yield "loaded", _said(error)
        return
    outputs = session.handle.get_outputs()
    shown = [value.name for value in outputs if numbers(value)]
    began = time.perf_counter()
    try:
        found = session.run(feed, shown or [value.name for value in outputs])
    except (GpusqError, MemoryError) as error:
        yield "failed", _said(error)
        return
    seconds = time.perf_counter() - began
    kept = {name: found[name] for name in shown}
    np.savez(Path(request["outputs"]) / f"{way}.npz", **kept)  # type: ignore[arg-type]  # numpy's stub
    yield "ran", f"{seconds:.6f}"


def _feed(path: str, session: Session) -> dict[str, NDArray[Any]]:
    """The batch that lies in a file, floats as wide as the model takes them; a random one where there is no file."""
    inputs = session.inputs()
    if not path:
        return random_feed(inputs, session.fixed_batch or 1, session.name)
    wanted = {info.name: info.dtype for info in inputs}
    with np.load(path) as stored:
        feed = {name: stored[name] for name in stored.files}
    return {name: x.astype(wanted.get(name, x.dtype)) if x.dtype.kind == "f" else x for name, x in feed.items()}


def _said(error: Exception) -> str:
    if isinstance(error, GpusqError):
        return str(error.details["found"] or error.what).strip().splitlines()[0]
    return MEMORY
