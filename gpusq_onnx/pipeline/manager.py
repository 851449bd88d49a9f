"""Run a pipeline on a model: plan, apply, check, and write the result or nothing.

What the manager owns and passes do not: files, hashes, the ledger of facts, provenance, seeds, timing, the reproducer.
What `plan` and `run` begin with is `opening`, one pass with its checks `execute`; what a failure leaves, `reproducer`.
The output appears atomically after all checks. A pass that has nothing to do is a warning where another one had, else
an error (`allow_noop` lets it be).

Provenance is model-level metadata under `pkg.gpusq_onnx.*`: no time, host or path, so that the same input and options
give the same bytes (`Pass.same_bytes` says on which condition).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from gpusq_onnx import __version__
from gpusq_onnx.data import remembered
from gpusq_onnx.data.opening import open_source
from gpusq_onnx.errors import NothingMatched
from gpusq_onnx.files import Staging, into
from gpusq_onnx.graph import invariants, io
from gpusq_onnx.graph.blame import blaming
from gpusq_onnx.graph.fp16.loadable import make_loadable
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.qdq.codes import store_on_grid, weight_format
from gpusq_onnx.graph.rewrites import newer
from gpusq_onnx.graph.sites import Site
from gpusq_onnx.graph.snapshot import take
from gpusq_onnx.graph.structure import Structure, analyse
from gpusq_onnx.marks import METADATA
from gpusq_onnx.pipeline import proof, targets
from gpusq_onnx.pipeline.base import Context, Pass, PlanRow
from gpusq_onnx.pipeline.doubts import doubts
from gpusq_onnx.pipeline.execute import (
    execute,
    given_after,
    nothing_done,
    outcome_of,
    planned,
    require_work,
)
from gpusq_onnx.pipeline.grammar import Pipeline
from gpusq_onnx.pipeline.opening import Opening, opened
from gpusq_onnx.pipeline.outcome import FileFacts, Outcome, Proof, StepOutcome
from gpusq_onnx.pipeline.parallel import run_all
from gpusq_onnx.pipeline.reproducer import reproducer
from gpusq_onnx.pipeline.run import (
    Run,
    RunOptions,
    begin,
    sample_of,
    scheduled,
    take_facts,
)
from gpusq_onnx.pipeline.summary import Architecture, Cost, as_planned
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
    with opened(path, pipeline, options) as opening:
        model, data = opening.model, opening.settled.options
        structure = opening.analysed()
        sample = sample_of(open_source(data, model.inputs())) if data.path else None
        with Trials() as trials:
            structure, before = opening.observed(structure, sample, trials)
        passes, facts = opening.passes, take_facts(model)
        steps, worked = list[StepOutcome](), list[Pass[Any]]()
        idle, warnings = list[NothingMatched](), [*opening.settled.warnings, *opening.notes]
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
        after = opening.cost(model, structure, as_planned(rows, facts))
        look(structure, rows)
        file = opening.file.result()
    return Outcome(
        pipeline=str(opening.pipeline),
        seed=data.seed,
        input=file,
        output=None,
        data=None,
        steps=tuple(steps),
        before=before.in_files(file.bytes),
        after=after,
        architecture=Architecture.of(structure),
        warnings=tuple(warnings),
        target=options.target,
        canonical=options.canonical,
        allow_noop=options.allow_noop,
    )


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
    with (
        into(results) as staging,
        opened(path, pipeline, options, output) as opening,
        Trials() as trials,
    ):
        model = opening.model
        state = begin(model, opening.passes, replace(options, data=opening.settled.options), trials.start())
        state.folder = output.with_name(output.name + ".training")
        structure, before = _looked_at(path, opening, state)
        beside = output if reproducible else None
        structure = _worked(path, beside, opening.pipeline, state, structure, leader=leader)
        after = _finished(opening, structure, state)
        used = None if state.source is None else opening.settled.describe(state.source)
        found = opening.file.result()
        model.set_metadata(_provenance(model, opening.pipeline, found.sha256, state.data.seed, used))
        written = shown = None
        if leader:
            last = len(state.passes) - 1
            with reproducer(path, beside, opening.pipeline, last, state, "the written model failed its proof"):
                state.trials.start(found.bytes)
                written, shown = _written(state, structure, path, output, staging)
            staging.afterwards(partial(_forget_checkpoints, state.folder))
        look(structure)
    notes = state.source.notes if state.source is not None and state.data.path is not None else []
    return Outcome(
        pipeline=str(opening.pipeline),
        seed=state.data.seed,
        input=found,
        output=written,
        data=used,
        steps=tuple(state.steps),
        before=before.in_files(found.bytes),
        after=after if written is None else after.in_files(written.bytes),
        architecture=Architecture.of(structure),
        warnings=(*opening.settled.warnings, *state.warnings, *notes),
        proof=shown,
        target=options.target,
        canonical=options.canonical,
        allow_noop=options.allow_noop,
    )


def _looked_at(path: Path, opening: Opening, state: Run) -> tuple[Structure, Cost]:
    """The structure and the cost of a model that is sound, tried and observed; the run's passes and schedule."""
    model = opening.model
    state.snapshot = take(model)
    tried = nullcontext() if state.sample is None else proof.survival(model, state.trials, state.sample)
    with tried as survived:
        structure = opening.analysed(state.snapshot)
        if survived is not None:
            state.progress.start("trying the model in onnxruntime")
            state.trial = survived()
            state.progress.finish()
    ran = state.trial is not None and state.trial.outcome == "ran"
    if opening.settled.guessed and state.source is not None and ran:
        opening.notes += doubts(partial(Session, path), state.source)
    structure, cost = opening.observed(structure, state.sample, state.trials)
    state.warnings += opening.notes
    state.passes = opening.passes
    state.schedule = scheduled(state)
    state.schedule.announce(state.images, state.offered)
    return structure, cost


def _worked(
    path: Path, beside: Path | None, pipeline: Pipeline, state: Run, structure: Structure, *, leader: bool
) -> Structure:
    """Every pass with its checks, and the proof that those that compute the same do; the structure of the result."""
    model, passes = state.model, state.passes
    exact = next((index for index, step in enumerate(passes) if not step.exact), len(passes))
    for index in range(len(passes) + 1):
        if index == exact and leader and (model.rewritten or state.worked):
            with reproducer(path, beside, pipeline, max(0, index - 1), state, "the model is not what it was"):
                proof.require_same(path, model, structure.types, state.trials.with_feed(state.sample))
        if index < len(passes):
            with reproducer(path, beside, pipeline, index, state) if leader else nullcontext(), blaming(path):
                structure = execute(state, index, structure)
    require_work(passes, state.idle, state.allow_noop)
    state.snapshot = None
    return structure


def _finished(opening: Opening, structure: Structure, state: Run) -> Cost:
    """What the model costs after all passes; it is made ready to be written."""
    model, target = state.model, opening.options.target
    run_all(_settle_on_grid, structure.sites)
    make_loadable(model, structure.shapes)
    after = opening.cost(model, structure)
    if newer.settle_newer(model, structure.shapes):
        invariants.check(model, "writing for a newer opset")
    if target is not None:
        state.warnings += targets.too_new(target, model.opset)
        model.set_metadata({f"{METADATA}target": target})
    return after


def _settle_on_grid(site: Site) -> None:
    if (fmt := weight_format(site)) is not None:
        store_on_grid(site, fmt)


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
    old = model.metadata.get(f"{METADATA}history")
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
    return {f"{METADATA}{key}": value for key, value in {**entry, **kept, "history": history}.items()}
