"""Build an engine: parse, plan, write, and keep what the builder said, from which the report is made.

The plan appears at its place complete, with a card `PLAN.json` beside it that says what it was built from, by what and
for which GPU; or nothing appears. A model that TensorRT refuses, or that makes it crash, is an outcome and no error.
"""

import json
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gpusq_onnx import __version__
from gpusq_onnx.errors import EnvironmentLacking, GpusqError, UnsupportedModelError, UsageError
from gpusq_onnx.files import atomic_write, present
from gpusq_onnx.graph.io import file_digest
from gpusq_onnx.runtime.child import Reply, ask
from gpusq_onnx.runtime.store import Store
from gpusq_onnx.runtime.tensorrt.layers import LAYERS
from gpusq_onnx.runtime.tensorrt.library import WORKER, Library
from gpusq_onnx.runtime.tensorrt.options import BuildOptions
from gpusq_onnx.scratch import Scratch

_MESSAGE = re.compile(r"\[[A-Z!]\] ")  # Polygraphy's mark at the start of a message, which may have many lines
_VERBOSE = "[X]"  # of TensorRT's most verbose messages
_KEPT = ("(Sparsity)", LAYERS)  # what is wanted of those

_NOT_THE_MODEL: tuple[tuple[str, type[GpusqError], str, str], ...] = (
    (
        "out of memory",
        EnvironmentLacking,
        "the GPU has not enough memory for the build",
        "free the GPU, or limit the builder: --memory workspace:1G",
    ),
    (
        "unable to load library",
        EnvironmentLacking,
        "a library of TensorRT's that this build needs is not there",
        "install it, from the same release; libnvinfer_lean is needed by --version-compatible alone",
    ),
    (
        "workspace (limit|size)",
        UsageError,
        "no kernel keeps to the memory that the builder may use",
        "give it more, for example --memory workspace:1G, or leave the limit out",
    ),
)
"""Causes of a failed build beside the model: TensorRT's words for them, the error's kind and text, the next step."""


@dataclass(frozen=True)
class Built:
    """What came of a build.

    Attributes:
        plan: where the engine is; there only if `ok`.
        errors: the parser's or the builder's, or how it crashed; empty when ok.
        sha256, bytes: of the plan.
        log: the builder's lines without its most verbose messages, but for those on sparsity and on the layers.
        inspector: the engine inspector's JSON text; "" without one, and then `uninspected` says why.
        cached: taken from the store, where an earlier build had put it.
        seconds: of the build itself, be it the earlier one.
    """

    plan: Path
    errors: tuple[str, ...]
    sha256: str
    bytes: int
    log: tuple[str, ...]
    inspector: str
    uninspected: str
    cached: bool
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether there is an engine."""
        return not self.errors

    @property
    def warnings(self) -> list[str]:
        """The library's warnings, each once."""
        return list(dict.fromkeys(line[3:].strip() for line in self.log if line.startswith("[W]")))

    def require(self, model: Path) -> "Built":
        """Itself, if there is an engine.

        Raises:
            EnvironmentLacking: the GPU's memory did not suffice, or a part of TensorRT is not installed.
            UsageError: no kernel keeps to the memory that the builder may use.
            UnsupportedModelError: TensorRT refuses the model.
        """
        if self.ok:
            return self
        for words, kind, what, hint in _NOT_THE_MODEL:
            for error in self.errors:
                if re.search(words, error, re.IGNORECASE):
                    raise kind(what, where=str(model), found=error, hint=hint)
        raise UnsupportedModelError(
            "TensorRT builds no engine from the model",
            where=str(model),
            found=" | ".join(self.errors[:5]),
            hint="gpusq-onnx check --parser says whether the parser or the builder refuses it",
        )


def build_engine(
    model: Path,
    digest: str,
    plan: Path,
    options: BuildOptions,
    library: Library,
    *,
    cache: Path | None = None,
    timeout: float | None = None,
) -> Built:
    """Build `model` into `plan`, or take the engine of an equal build from the cache.

    Args:
        model: the ONNX file; external data is found beside it.
        digest: SHA-256 of the model and its external data (`graph.io.file_digest`).
        plan: the file to write; its folder holds scratch files meanwhile.
        options: see there; `options.rtx` as in the library.
        library: who builds.
        cache: folder of engines and timings; None: nothing is kept or reused.
        timeout: seconds; a builder that takes longer has refused the model.

    Raises:
        UsageError, EnvironmentLacking: nothing can be kept in the cache, and nothing is there to take.
        OSError: the folder of the plan or the cache cannot be written.
    """
    engine_key = {**library.identity, "tool": __version__, "model": digest, "options": options.to_dict()}
    engines = Store(cache, "engines") if cache else None
    if engines and (entry := engines.find(engine_key)):
        found = Built(plan, cached=True, **{**entry.notes, "log": tuple(entry.notes["log"]), "errors": ()})
        _publish(entry.file, plan, found, engine_key, library)
        return found
    if engines:
        engines.require_place("the cache")  # a build takes minutes
    with present(plan.resolve().parent), Scratch(plan.resolve().parent) as scratch:
        built = _build(model, plan, options, library, scratch, cache, timeout)
        if built.ok:
            _publish(scratch / "plan", plan, built, engine_key, library)
            if engines:
                kept = asdict(replace(built, log=()))
                notes = {key: kept[key] for key in ("sha256", "bytes", "inspector", "uninspected", "seconds")}
                engines.keep(engine_key, scratch / "plan", {**notes, "log": list(built.log)})
    return built


def _build(
    model: Path,
    plan: Path,
    options: BuildOptions,
    library: Library,
    scratch: Path,
    cache: Path | None,
    timeout: float | None,
) -> Built:
    made, old, new = scratch / "plan", scratch / "timings", scratch / "new_timings"
    timings = Store(cache, "timings") if cache and not library.rtx else None  # TensorRT-RTX times nothing
    key = {**library.identity, "options": {**options.to_dict(), "profiles": None}}
    if timings and (entry := timings.find(key)):
        shutil.copyfile(entry.file, old)  # Polygraphy locks what it reads, and another build may replace it
    request = {
        "task": "build",
        "rtx": library.rtx,
        "site": str(library.site or ""),
        "model": str(model.resolve()),
        "plan": str(made),
        "profiles": options.to_dict()["profiles"],
        "options": options.to_dict(),
        "timings": str(old) if old.is_file() else "",
        "new_timings": str(new) if timings else "",
    }
    reply = ask(WORKER, request, scratch, timeout)
    log = tuple(_kept(reply.lines()))
    errors = _errors(reply, log)
    if not errors and timings and new.is_file():
        timings.keep(key, new, {})
    return Built(
        plan=plan,
        errors=errors,
        sha256="" if errors else file_digest(made),
        bytes=0 if errors else made.stat().st_size,
        log=log,
        inspector=reply.answer.get("inspector", ""),
        uninspected=reply.answer.get("uninspected", "" if "inspector" in reply.answer else f"it {reply.end}"),
        cached=False,
        seconds=reply.seconds,
    )


def _kept(lines: Iterable[str]) -> Iterator[str]:
    wanted = True
    for line in lines:
        if _MESSAGE.match(line):
            wanted = not line.startswith(_VERBOSE) or any(words in line for words in _KEPT)
        if wanted:
            yield line


def _errors(reply: Reply, log: tuple[str, ...]) -> tuple[str, ...]:
    """Empty when there is a plan: a crash after it, in the inspector, loses the report's details only."""
    if reply.answer.get("built"):
        return ()
    if "errors" not in reply.answer:
        return (f"the builder {reply.end}", *log[-5:])
    reasons = [line for line in log if line.startswith("[E]")]  # the builder's are in its log only
    return (*reply.answer["errors"], *reasons)


def _publish(source: Path, plan: Path, built: Built, key: dict[str, Any], library: Library) -> None:
    card = {"sha256": built.sha256, "bytes": built.bytes, "deployable": library.deployable, **key}
    if not library.deployable:
        card = {
            "note": "NOT FOR DEPLOYMENT: built without a GPU, by TensorRT-RTX's builder, to prove it builds",
            **card,
        }
    with source.open("rb") as read, atomic_write(card_of(plan), plan) as (beside, file):
        shutil.copyfileobj(read, file, 1 << 22)
        beside.write(f"{json.dumps(card, indent=2)}\n".encode())


def card_of(plan: Path) -> Path:
    """The card's place: `model.plan.json` beside `model.plan`."""
    return plan.with_name(f"{plan.name}.json")
