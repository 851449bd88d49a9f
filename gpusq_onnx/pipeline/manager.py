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
import traceback
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
from gpusq_onnx.errors import GpusqError, InvariantError, NothingMatched, PassFailed, UnsupportedModelError, UsageError
from gpusq_onnx.graph import invariants, io
from gpusq_onnx.graph.model import Model, decoded, values_of
from gpusq_onnx.graph.structure import Structure, analyse
from gpusq_onnx.pipeline import recipe, table
from gpusq_onnx.pipeline.base import Context, Fact, Given, Pass
from gpusq_onnx.pipeline.grammar import Pipeline
from gpusq_onnx.pipeline.outcome import FileFacts, Outcome, StepOutcome
from gpusq_onnx.pipeline.progress import NullProgress, Progress
from gpusq_onnx.pipeline.summary import architecture, as_planned, measure

PREFIX = "pkg.gpusq_onnx."
SYNTHETIC = (
    "NO DATA was given (--data): synthetic images stand in for it. The model is legal and its "
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
    pipeline = table.expand(pipeline)
    passes = table.resolve(pipeline)
    model = io.load(path)
    with _hashing(path, model) as file:
        structure = analyse(model)
        _require_numbers(model, structure)
        invariants.require(model)
        before = measure(model, structure)
        facts: list[Fact] = []
        steps = []
        for step in passes:
            step.requires(model, structure)
            rows = step.plan(model, structure, Given(data.path is not None, tuple(facts)))
            made = step.ensures(rows)
            facts += made
            texts = tuple(fact.text for fact in made)
            steps.append(StepOutcome(step.name, step.version, step.options.model_dump(), tuple(rows), {}, texts))
            if step.structural:
                step.apply(model, structure, rows, Context())
                structure = analyse(model)
        quantised = {row.tensor for step in steps for row in step.rows if row.decision == "quantise weight"}
        after = measure(model, structure, as_planned(quantised, facts))
        found = file.result()
    shape = architecture(structure)
    return Outcome(str(pipeline), data.seed, found, None, None, tuple(steps), before, after, shape)


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
    pipeline = table.expand(pipeline)
    passes = table.resolve(pipeline)
    model = io.load(path)
    check_output(output, [path, *io.data_files(model)])
    with _hashing(path, model) as file:
        state = _begin(model, passes, data, allow_noop, progress or NullProgress())
        structure = analyse(model)
        _require_numbers(model, structure)
        invariants.require(model)
        before = measure(model, structure)
        for index, step in enumerate(passes):
            with _reproducer(path, output, pipeline, index, data):
                structure = _execute(state, step)
        after = measure(model, structure)
        source = state.source
        used = None if source is None else {"options": data.echo(), **source.describe(), "sha256": source.digest()}
        found = file.result()
        model.set_metadata(_provenance(model, pipeline, found.sha256, data.seed, used))
        sha = io.save(model, output)
    return Outcome(
        str(pipeline),
        data.seed,
        found,
        _file_facts(output, [output.with_name(output.name + ".data")] if model.external else [], sha),
        used,
        tuple(state.steps),
        before,
        after,
        architecture(structure),
        tuple(state.warnings + (source.notes if source is not None and data.path is not None else [])),
    )


def _begin(model: Model, passes: Sequence[Pass[Any]], data: DataOptions, allow_noop: bool, progress: Progress) -> _Run:
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


def check_output(output: Path, inputs: Sequence[Path]) -> None:
    """Raise UsageError unless a file can be written to `output` (and `OUTPUT.data`) without touching an input."""
    for target in (output, output.with_name(output.name + ".data")):
        if any(target.resolve() == used.resolve() or _same(target, used) for used in inputs):
            raise UsageError("the output would overwrite the input", where=str(target), hint="give another -o/--output")
    if output.exists() and not output.is_file():
        found = "a folder" if output.is_dir() else "a device or a pipe"
        raise UsageError(f"the output is {found}", where=str(output), hint="name a file with -o/--output")
    if not output.parent.is_dir():
        raise UsageError("the output's folder does not exist", where=str(output.parent), hint="make it first")


def _same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


def _file_facts(path: Path, data: Sequence[Path], sha: str) -> FileFacts:
    return FileFacts(str(path), sum(part.stat().st_size for part in (path, *data)), sha)


@contextmanager
def _hashing(path: Path, model: Model) -> Iterator[Future[FileFacts]]:
    """The input's facts, its hash computed beside the work in a thread."""
    data = io.data_files(model)
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(lambda: _file_facts(path, data, io.file_digest(path, data)))


def _require_numbers(model: Model, structure: Structure) -> None:
    """Refuse NaN in any initializer, and infinity in a weight or its bias (a mask may hold it)."""
    finite = {id(tensor) for site in structure.sites for tensor in (site.weight, site.bias) if tensor is not None}
    for constant in model.constants():
        values = values_of(constant)
        if values.dtype.kind not in "fV" or np.isfinite(np.sum(values, dtype=np.float32)):
            continue
        values = values.astype(np.float32, copy=False)
        if np.isnan(values).any() or (id(constant) in finite and not np.isfinite(values).all()):
            raise UnsupportedModelError(
                f"{constant.name!r} holds NaN or infinity",
                where=f"read by node {constant.outputs[0].name!r}" if constant.outputs else None,
                expected="finite numbers",
                found=f"{np.count_nonzero(~np.isfinite(values))} of {values.size} are not",
                hint="the export or the training went wrong: check the original checkpoint",
            )


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
        found = f"{type(error).__name__}: {error}"
        folder = output.with_name(output.name + ".reproducer")
        try:
            _write_reproducer(folder, path, pipeline, index, data, "".join(traceback.format_exception(error)))
            again = f"--recipe {folder}/recipe.toml --data-options {folder}/data.toml {folder}/model.onnx"
            hint = f"report it with the folder {folder}; to see it again: gpusq-onnx apply {again}"
        except Exception as second:
            hint = f"report it; no reproducer could be written ({type(second).__name__}: {second})"
        raise PassFailed(f"the pass {pipeline.steps[index].name!r} failed", found=found, hint=hint) from error


def _write_reproducer(folder: Path, path: Path, pipeline: Pipeline, index: int, data: DataOptions, error: str) -> None:
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        passes = table.resolve(Pipeline(pipeline.steps[:index])) if index else []
        state = _begin(io.load(path), passes, data, True, NullProgress())
        for step in passes:
            _execute(state, step)
        io.save(state.model, partial / "model.onnx")
        (partial / "recipe.toml").write_text(recipe.dumps(Pipeline(pipeline.steps[index:])), encoding="utf-8")
        (partial / "data.toml").write_text(data.to_toml(), encoding="utf-8")
        (partial / "error.txt").write_text(error, encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
