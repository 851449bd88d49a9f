"""Run a pipeline on a model: plan, apply, check, and write the result or nothing.

For every pass, in order:
    requires · plan · apply · did anything change? · graph invariants · every fact that was established so far

What the manager owns and passes do not: files, hashes, the ledger of facts, provenance, seeds, timing, the reproducer.
The output appears atomically after all checks. A pass that changes nothing is an error (`allow_noop` lets it be). A
pass that fails leaves `OUTPUT.reproducer/`: its input, the pipeline from it on, and the error.

Provenance is model-level metadata under `pkg.gpusq_onnx.*`: no time, host or path, so that the same input and options
give the same bytes.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gpusq_onnx import __version__
from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.source import InputSpec, Source, open_source
from gpusq_onnx.errors import GpusqError, InvariantError, NothingMatched, PassFailed, UsageError
from gpusq_onnx.graph import invariants, io
from gpusq_onnx.graph.cost import total_cost
from gpusq_onnx.graph.model import Model, decoded
from gpusq_onnx.graph.sites import Site
from gpusq_onnx.graph.structure import Structure, analyse
from gpusq_onnx.pipeline import recipe, table
from gpusq_onnx.pipeline.base import Context, Fact, Given, Pass
from gpusq_onnx.pipeline.facts import SparseWeight
from gpusq_onnx.pipeline.grammar import Pipeline
from gpusq_onnx.pipeline.outcome import FileFacts, Outcome, StepOutcome
from gpusq_onnx.pipeline.progress import NullProgress, Progress

PREFIX = "pkg.gpusq_onnx."
SYNTHETIC = (
    "no --data was given: ranges and second-order statistics come from SYNTHETIC images. The model is legal and its "
    "accuracy is unknown; calibrate with real images (--data FOLDER) before anybody ships it"
)


@dataclass
class _Run:
    """One pipeline under way."""

    model: Model
    source: Source | None
    data: DataOptions
    progress: Progress
    allow_noop: bool
    facts: list[Fact] = field(default_factory=list)
    steps: list[StepOutcome] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def plan(
    path: Path, pipeline: Pipeline, *, data: DataOptions, allow_noop: bool = False, progress: Progress | None = None
) -> Outcome:
    """What `run` would do to each tensor, and the totals that it would reach; nothing is changed or written.

    Raises:
        UsageError, UnsupportedModelError, NothingMatched: as `run`.
    """
    passes = table.resolve(pipeline)
    with _hashing(path) as sha:
        model = io.load(path)
        structure = analyse(model)
        facts: list[Fact] = []
        steps = []
        for step in passes:
            step.requires(model, structure)
            rows = step.plan(model, structure, Given(data.path is not None, tuple(facts)))
            made = step.ensures(rows)
            facts += made
            texts = tuple(fact.text for fact in made)
            steps.append(StepOutcome(step.name, step.version, step.options.model_dump(), tuple(rows), {}, texts))
        quantised = {row.tensor for step in steps for row in step.rows if row.decision == "quantise weight"}
        before = total_cost(model, structure, lambda site: (bool(site.quantised), False))
        after = total_cost(model, structure, lambda site: (site.name in quantised, _is_sparse(site, facts)))
    file = FileFacts(str(path), path.stat().st_size, sha.result())
    return Outcome(str(pipeline), data.seed, file, None, None, tuple(steps), before, after)


def run(
    path: Path,
    output: Path,
    pipeline: Pipeline,
    *,
    data: DataOptions,
    allow_noop: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """Apply a pipeline to a model file and write the result.

    Args:
        path, output: the model, and the file that is written (with `OUTPUT.data` where there is external data).
        data: calibration data; without a path, passes that need data get synthetic images, with a warning.
        allow_noop: a pass that changes nothing is no error.

    Raises:
        UsageError: output equal to input, a folder that does not exist, an unknown pass or option.
        UnsupportedModelError, UnsupportedDataError, NothingMatched: the model or the data cannot be used.
        PassFailed, InvariantError: our fault; a reproducer lies beside the output.
    """
    _check_output(path, output)
    passes = table.resolve(pipeline)
    with _hashing(path) as sha:
        state = _begin(path, passes, data, allow_noop, progress or NullProgress())
        structure = analyse(state.model)
        before = total_cost(state.model, structure, lambda site: (bool(site.quantised), False))
        for index, step in enumerate(passes):
            with _reproducer(path, output, pipeline, index, data):
                structure = _execute(state, step)
        after = total_cost(state.model, structure, lambda site: (bool(site.quantised), _is_sparse(site, state.facts)))
        source = state.source
        used = None if source is None else {"options": data.echo(), **source.describe(), "sha256": source.digest()}
        digest = sha.result()
        state.model.set_metadata(_provenance(state.model, pipeline, digest, data.seed, used))
        written = io.save(state.model, output)
    return Outcome(
        str(pipeline),
        data.seed,
        FileFacts(str(path), path.stat().st_size, digest),
        FileFacts(str(output), output.stat().st_size, written),
        used,
        tuple(state.steps),
        before,
        after,
        tuple(state.warnings + (source.notes if source is not None else [])),
    )


def _begin(path: Path, passes: Sequence[Pass[Any]], data: DataOptions, allow_noop: bool, progress: Progress) -> _Run:
    model = io.load(path)
    state = _Run(model, None, data, progress, allow_noop)
    if data.path is not None or any(step.needs_data for step in passes):
        inputs = [InputSpec(spec.name, spec.dtype, spec.shape) for spec in model.inputs()]
        state.source = open_source(data, inputs)
        if data.path is None:
            state.warnings.append(SYNTHETIC)
    return state


def _execute(state: _Run, step: Pass[Any]) -> Structure:
    """One pass with all its checks; returns the structure of the model as it is afterwards."""
    model, structure = state.model, analyse(state.model)
    step.requires(model, structure)
    rows = step.plan(model, structure, Given(state.data.path is not None, tuple(state.facts)))
    context = Context(state.source, state.data.seed, state.progress)
    mark = _fingerprint(model)
    began = time.perf_counter()
    step.apply(model, structure, rows, context)
    seconds = time.perf_counter() - began
    if not state.allow_noop and not _changed(mark, _fingerprint(model)):
        raise NothingMatched(
            f"the pass {step.name!r} changed nothing",
            found="the weights already are as the pass would make them",
            hint="leave the pass out, or give --allow-noop",
        )
    invariants.check(model, step.name)
    structure = analyse(model)
    made = step.ensures(rows)
    state.facts += made
    _check_facts(state, structure, step.name)
    state.warnings += context.warnings
    texts = tuple(fact.text for fact in made)
    options: dict[str, Any] = step.options.model_dump()
    state.steps.append(StepOutcome(step.name, step.version, options, tuple(rows), context.findings, texts, seconds))
    return structure


def _check_facts(state: _Run, structure: Structure, where: str) -> None:
    for fact in state.facts:
        problem = fact.broken(state.model, structure)
        if problem:
            raise InvariantError(
                f"a fact no longer holds after {where}: {fact.text}",
                where=where,
                found=problem,
                hint="this is a defect of the pass; the reproducer beside the output shows it",
            )


def _is_sparse(site: Site, facts: Sequence[Fact]) -> bool:
    return any(isinstance(f, SparseWeight) and f.concerns(site) and f.pattern != "4:8pair" for f in facts)


Fingerprint = tuple[bytes, dict[str, Any]]


def _fingerprint(model: Model) -> Fingerprint:
    """The graph's bytes without weights, and each weight's values by reference: values are replaced, never edited."""
    graph = model.export()[0]
    return graph.SerializeToString(deterministic=True), {c.name: c._values for c in model.constants()}


def _changed(before: Fingerprint, after: Fingerprint) -> bool:
    if before[0] != after[0] or before[1].keys() != after[1].keys():
        return True
    moved = [(old, after[1][name]) for name, old in before[1].items() if old is not after[1][name]]
    return any(not np.array_equal(decoded(old), decoded(new)) for old, new in moved)


def _provenance(model: Model, pipeline: Pipeline, sha: str, seed: int, used: dict[str, Any] | None) -> dict[str, str]:
    old = model.metadata.get(f"{PREFIX}history")
    entry = {
        "version": __version__,
        "pipeline": str(pipeline),
        "input_sha256": sha,
        "seed": str(seed),
        "data": "none" if used is None else used["kind"],
        "data_sha256": "" if used is None else used["sha256"],
    }
    history = json.dumps([*(json.loads(old) if old else []), entry], sort_keys=True)
    return {f"{PREFIX}{key}": value for key, value in {**entry, "history": history}.items()}


def _check_output(path: Path, output: Path) -> None:
    taken = {path.resolve(), path.with_name(path.name + ".data").resolve()}
    for target in (output, output.with_name(output.name + ".data")):
        if target.resolve() in taken or (target.exists() and path.exists() and target.samefile(path)):
            raise UsageError("the output would overwrite the input", where=str(target), hint="give another -o/--output")
    if output.is_dir():
        raise UsageError("the output is a folder", where=str(output), hint="name a file in it with -o/--output")
    if not output.parent.is_dir():
        raise UsageError("the output's folder does not exist", where=str(output.parent), hint="make it first")


@contextmanager
def _hashing(path: Path) -> Iterator[Future[str]]:
    """The file's SHA-256, computed beside the work in a thread."""
    if not path.is_file():
        io.load(path)  # raises what is wrong with it
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(io.file_digest, path)


@contextmanager
def _reproducer(path: Path, output: Path, pipeline: Pipeline, index: int, data: DataOptions) -> Iterator[None]:
    """Leave the failing pass's input and the rest of the pipeline beside the output when a pass fails by our fault."""
    try:
        yield
    except (OSError, MemoryError):
        raise  # the machine's fault: nothing to reproduce
    except Exception as error:
        if isinstance(error, GpusqError) and error.exit_code != PassFailed.exit_code:
            raise
        rest = Pipeline(pipeline.steps[index:])
        folder = output.with_name(output.name + ".reproducer")
        _write_reproducer(folder, path, pipeline, index, data, f"{type(error).__name__}: {error}")
        text = f"the pass {rest.steps[0].name!r} failed"
        raise PassFailed(
            text,
            found=f"{type(error).__name__}: {error}",
            hint=f"report it with {folder}: gpusq-onnx apply --recipe {folder}/recipe.toml {folder}/model.onnx",
        ) from error


def _write_reproducer(folder: Path, path: Path, pipeline: Pipeline, index: int, data: DataOptions, error: str) -> None:
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        passes = table.resolve(Pipeline(pipeline.steps[:index])) if index else []
        state = _begin(path, passes, data, True, NullProgress())
        for step in passes:
            _execute(state, step)
        io.save(state.model, partial / "model.onnx")
        (partial / "recipe.toml").write_text(recipe.dumps(Pipeline(pipeline.steps[index:])))
        (partial / "error.txt").write_text(error + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
