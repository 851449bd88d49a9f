"""Run a pipeline on a model: plan, apply, check, and write the result or nothing.

What the manager owns and passes do not: files, hashes, the ledger of facts, provenance, seeds, timing, the reproducer.
One pass with its checks is `execute`; what a failure leaves, `reproducer`. The output appears atomically after all
checks. A pass that has nothing to do is a warning where another one had, else an error (`allow_noop` lets it be).

Provenance is model-level metadata under `pkg.gpusq_onnx.*`: no time, host or path, so that the same input and options
give the same bytes (`Pass.same_bytes` says on which condition).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gpusq_onnx import __version__
from gpusq_onnx.data import remembered
from gpusq_onnx.data.opening import open_source
from gpusq_onnx.errors import NothingMatched, UnsupportedModelError, UsageError
from gpusq_onnx.files import Staging, require_place, staged
from gpusq_onnx.graph import invariants, io
from gpusq_onnx.graph.blame import blaming
from gpusq_onnx.graph.cost import open_positions
from gpusq_onnx.graph.fp16.biases import protect_biases
from gpusq_onnx.graph.fp16.transposes import move_transposes
from gpusq_onnx.graph.model import Model, sum_of, values_of
from gpusq_onnx.graph.qdq.codes import store_on_grid, weight_format
from gpusq_onnx.graph.rewrites import newer
from gpusq_onnx.graph.sites import Site
from gpusq_onnx.graph.snapshot import take
from gpusq_onnx.graph.structure import Structure, analyse
from gpusq_onnx.graph.wording import node_label
from gpusq_onnx.pipeline import automatic, proof, table, targets
from gpusq_onnx.pipeline.base import Context, Pass, PlanRow
from gpusq_onnx.pipeline.doubts import doubts
from gpusq_onnx.pipeline.execute import (
    execute,
    given_after,
    nothing_done,
    outcome_of,
    planned,
    require_work,
    well_ordered,
)
from gpusq_onnx.pipeline.grammar import Pipeline
from gpusq_onnx.pipeline.outcome import FileFacts, Outcome, Proof, StepOutcome
from gpusq_onnx.pipeline.parallel import run_all
from gpusq_onnx.pipeline.reproducer import reproducer
from gpusq_onnx.pipeline.run import (
    PREFIX,
    Run,
    RunOptions,
    begin,
    sample_of,
    scheduled,
    take_facts,
    widened,
)
from gpusq_onnx.pipeline.summary import Architecture, as_planned, measure
from gpusq_onnx.runtime.observed import observe
from gpusq_onnx.runtime.ort import Session
from gpusq_onnx.runtime.trial import Trials


def plan(
    path: Path,
    pipeline: Pipeline,
    options: RunOptions,
    *,
    look: Callable[[Structure, Sequence[PlanRow]], None] = lambda structure, rows: None,
) -> Outcome:
    """What `run` would do to each tensor, and the totals that it would reach; nothing is changed or written.

    Args:
        look: gets the model as it is planned for, rewritten where passes rewrite it, and all rows.

    Raises:
        UsageError, UnsupportedModelError, NothingMatched: as `run`.
    """
    pipeline, notes = _fitted(pipeline, options.target)
    passes = well_ordered(table.resolve(pipeline))
    model = io.load(path)
    notes += widened(model, passes)
    settled = remembered.settle(options.data, [model.metadata], path.parent)
    data = settled.options
    with blaming(path), _hashing(path, model) as file:
        structure = analyse(model)
        _require_numbers(model, structure)
        invariants.require(model)
        sample = sample_of(open_source(data, model.inputs())) if data.path else None
        with Trials() as trials:
            structure = observe(model, structure, sample, trials)
        if options.canonical:
            pipeline, passes = automatic.insert(pipeline, passes, model, structure)
        before = measure(model, structure)
        notes += _uncounted(structure)
        facts = take_facts(model)
        steps, worked = list[StepOutcome](), list[Pass[Any]]()
        idle, warnings = list[NothingMatched](), [*settled.warnings, *notes]
        for index, step in enumerate(passes):
            given = given_after(passes[:index], worked, facts, data=data.path is not None)
            found = planned(step, model, structure, given)
            if isinstance(found, NothingMatched):
                idle.append(found)
                warnings.append(nothing_done(step, found))
                steps.append(outcome_of(step, found.rows))
                continue
            worked.append(step)
            made = step.ensures(found)
            facts += made
            steps.append(outcome_of(step, found, made))
            if step.structural:
                step.apply(model, structure, found, Context())
                structure = analyse(model)
        require_work(passes, idle, options.allow_noop)
        rows = [row for step in steps for row in step.rows]
        after = measure(model, structure, as_planned(rows, facts))
        look(structure, rows)
        facts_of_file = file.result()
    made_of = Architecture.of(structure), tuple(warnings)
    before = before.in_files(facts_of_file.bytes)
    outcome = Outcome(str(pipeline), data.seed, facts_of_file, None, None, tuple(steps), before, after, *made_of)
    return _asked(outcome, options)


def run(
    path: Path,
    output: Path,
    pipeline: Pipeline,
    options: RunOptions,
    *,
    leader: bool = True,
    results: Staging | None = None,
    reproducible: bool = True,
    look: Callable[[Structure], None] = lambda structure: None,
) -> Outcome:
    """Apply a pipeline to a model file and write the result.

    Args:
        path, output: the model, and the file that is written (with `OUTPUT.data` where there is external data).
        look: gets the model as it was written.
        leader: of several processes that train together and all run this, the one that writes.
        results: write there, and leave it to the caller to commit; None: the result has its name when this returns.
        reproducible: what fails by our fault leaves a reproducer beside the output.

    Raises:
        UsageError: output equal to input, a folder that does not exist, an unknown pass, option or target.
        UnsupportedModelError, UnsupportedDataError, NothingMatched: the model or the data cannot be used.
        PassFailed, InvariantError: our fault; a reproducer lies beside the output. A written file that onnxruntime
            refuses, or runs to another result than it says, is one (`pipeline.proof`).
    """
    if results is None:
        with staged() as own:
            return run(
                path, output, pipeline, options, leader=leader, results=own, reproducible=reproducible, look=look
            )
    pipeline, notes = _fitted(pipeline, options.target)
    passes = well_ordered(table.resolve(pipeline))
    model = io.load(path)
    check_output(output, [path, *io.data_files(model)])
    notes += widened(model, passes)
    settled = remembered.settle(options.data, [model.metadata], path.parent)
    with blaming(path), _hashing(path, model) as file, Trials() as trials:
        state = begin(model, passes, replace(options, data=settled.options), trials.start())
        state.warnings += notes
        state.folder = output.with_name(output.name + ".training")
        state.snapshot = take(model)
        tried = nullcontext() if state.sample is None else proof.survival(model, state.trials, state.sample)
        with tried as survived:
            structure = analyse(model, state.snapshot)
            _require_numbers(model, structure)
            invariants.require(model)
            if survived is not None:
                state.progress.start("trying the model in onnxruntime")
                state.trial = survived()
                state.progress.finish()
        if settled.guessed and state.source is not None and state.trial is not None and state.trial.outcome == "ran":
            state.warnings += doubts(partial(Session, path), state.source)
        structure = observe(model, structure, state.sample, state.trials)
        if options.canonical:
            pipeline, passes = automatic.insert(pipeline, passes, model, structure)
            state.passes = passes
        state.schedule = scheduled(state)
        state.schedule.announce(state.images, state.offered)
        before = measure(model, structure)
        state.warnings += _uncounted(structure)
        beside = output if reproducible else None
        exact = next((index for index, step in enumerate(passes) if not step.exact), len(passes))
        for index in range(len(passes) + 1):
            if index == exact and leader and (model.rewritten or state.worked):
                with reproducer(path, beside, pipeline, max(0, index - 1), state, "the model is not what it was"):
                    proof.require_same(path, model, structure.types, state.trials.with_feed(state.sample))
            if index < len(passes):
                with reproducer(path, beside, pipeline, index, state) if leader else nullcontext(), blaming(path):
                    structure = execute(state, index, structure)
        require_work(passes, state.idle, options.allow_noop)
        state.snapshot = None
        run_all(_settle_on_grid, structure.sites)
        protect_biases(model)
        move_transposes(model)
        after = measure(model, structure)
        source = state.source
        used = None if source is None else settled.describe(source)
        found = file.result()
        if newer.settle_newer(model):
            invariants.check(model, "writing for a newer opset")
        if options.target is not None:
            state.warnings += targets.too_new(options.target, model.opset)
            model.set_metadata({f"{PREFIX}target": options.target})
        model.set_metadata(_provenance(model, pipeline, found.sha256, state.data.seed, used))
        written = shown = None
        if leader:
            with reproducer(path, beside, pipeline, len(passes) - 1, state, "the written model failed its proof"):
                state.trials.start(found.bytes)
                written, shown = _written(state, structure, path, output, results)
        look(structure)
    if leader:
        results.afterwards(partial(_forget_checkpoints, state.folder))
    outcome = Outcome(
        str(pipeline),
        state.data.seed,
        found,
        written,
        used,
        tuple(state.steps),
        before.in_files(found.bytes),
        after if written is None else after.in_files(written.bytes),
        Architecture.of(structure),
        tuple(
            [*settled.warnings, *state.warnings]
            + (source.notes if source is not None and state.data.path is not None else [])
        ),
        shown,
    )
    return _asked(outcome, options)


def _settle_on_grid(site: Site) -> None:
    if (fmt := weight_format(site)) is not None:
        store_on_grid(site, fmt)


def _asked(outcome: Outcome, options: RunOptions) -> Outcome:
    """The outcome with what was asked for."""
    return replace(outcome, target=options.target, canonical=options.canonical, allow_noop=options.allow_noop)


def _fitted(pipeline: Pipeline, target: str | None) -> tuple[Pipeline, list[str]]:
    """The pipeline with its presets replaced, as the target runs it, and what is to be said of that."""
    pipeline = table.expand(pipeline)
    return (pipeline, []) if target is None else targets.fit(pipeline, target)


def _uncounted(structure: Structure) -> list[str]:
    """That MACs are those of one position, where the model leaves the size of its images open."""
    number = open_positions(structure)
    if not number:
        return []
    what = f"MACs and bit operations count one position for {number} of {len(structure.sites)} weights"
    return [f"{what}: the model leaves the sizes of their outputs open; --data shows them"]


def _written(state: Run, structure: Structure, path: Path, output: Path, results: Staging) -> tuple[FileFacts, Proof]:
    """Write the model among the results, and prove what was written."""
    model = state.model
    sha = io.save(model, output, results)
    state.progress.start("proving the written model")
    shown = proof.prove(results.place(output), model, structure.types, path, state.trials.with_feed(state.sample))
    state.progress.finish()
    if shown.note:
        state.warnings.append(shown.note)
    parts = [output, io.data_beside(output)] if model.external else [output]
    return FileFacts(str(output), sum(results.place(part).stat().st_size for part in parts), sha), shown


def _forget_checkpoints(folder: Path) -> None:
    for checkpoint in folder.glob("*/checkpoint*"):
        checkpoint.unlink()


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
    seen = used is not None and "preprocess" in used and used["kind"] != "synthetic"
    kept = {"preprocess": remembered.record(used["preprocess"])} if used is not None and seen else {}
    history = json.dumps([*(json.loads(old) if old else []), entry], sort_keys=True)
    return {f"{PREFIX}{key}": value for key, value in {**entry, **kept, "history": history}.items()}


def check_output(output: Path, inputs: Sequence[Path]) -> None:
    """Raise UsageError unless a file can be written to `output` (and `OUTPUT.data`) without touching an input."""
    for target in (output, io.data_beside(output)):
        if any(target.resolve() == used.resolve() or _same(target, used) for used in inputs):
            raise UsageError("the output would overwrite the input", where=str(target), hint="give another -o/--output")
    if output.exists() and not output.is_file():
        found = "a folder" if output.is_dir() else "a device or a pipe"
        raise UsageError(f"the output is {found}", where=str(output), hint="name a file with -o/--output")
    require_place(output, "the output")


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
        if np.dtype(constant.dtype).kind not in "fV" or np.isfinite(sum_of(constant)):
            continue
        values = values_of(constant).astype(np.float32, copy=False)
        if np.isnan(values).any() or (id(constant) in finite and not np.isfinite(values).all()):
            raise UnsupportedModelError(
                f"{constant.name!r} holds NaN or infinity",
                where=f"read by {node_label(constant.outputs[0])}" if constant.outputs else None,
                expected="finite numbers",
                found=f"{np.count_nonzero(~np.isfinite(values))} of {values.size} are not",
                hint="the export or the training went wrong: check the original checkpoint",
            )
