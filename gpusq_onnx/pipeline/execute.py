"""Carry out one pass with all its checks.

requires · plan · apply · did anything change? · graph invariants · every fact that was established so far
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from gpusq_onnx.errors import InvariantError, NothingMatched, SelectorUnmatched, UsageError
from gpusq_onnx.graph import invariants, label
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.snapshot import take
from gpusq_onnx.graph.structure import Structure, analyse
from gpusq_onnx.pipeline import facts
from gpusq_onnx.pipeline.base import Context, Fact, Pass, PlanContext, PlanRow
from gpusq_onnx.pipeline.fingerprint import Fingerprint
from gpusq_onnx.pipeline.outcome import StepOutcome
from gpusq_onnx.pipeline.parallel import in_order, one_blas_thread
from gpusq_onnx.pipeline.run import Run, scheduled

UNMOVED = "training moved no weight: what is trained is as the teacher has it, or every step was taken back"


def given_after(
    passes: Sequence[Pass[Any]], worked: Sequence[Pass[Any]], facts: Sequence[Fact], *, data: bool
) -> PlanContext:
    """What a plan may rely on after `passes`, of which `worked` had something to do."""
    done, all_kinds = (frozenset(step.kind for step in some) & {"prune", "quantise"} for some in (worked, passes))
    return PlanContext(data, tuple(facts), done, all_kinds - done)


def execute(state: Run, index: int, structure: Structure) -> Structure:
    """The pass at `index` with all its checks; `structure` is the model's, and that of the result is returned."""
    model, step = state.model, state.passes[index]
    given = given_after(state.passes[:index], state.worked, state.facts, data=state.data.path is not None)
    rows = planned(step, model, structure, given)
    if isinstance(rows, NothingMatched):
        state.idle.append(rows)
        state.warnings.append(nothing_done(step, rows))
        state.steps.append(outcome_of(step, rows.rows))
        return structure
    learns_later = any(later.kind == "finetune" for later in state.passes[index + 1 :])
    first = step.kind in ("prune", "quantise") and step.kind not in state.before
    if learns_later and first:
        state.before[step.kind] = model.clone()
    source = state.source if step.kind == "finetune" else state.calibration
    schedule = state.schedule or scheduled(state)
    schedule.step(index)
    context = Context(source, state.data.seed, schedule, before=state.before)
    if step.kind == "finetune" and state.folder is not None:
        context.folder = state.folder / f"{index + 1}-{step.name}"
    mark = Fingerprint(state.snapshot or take(model))
    state.snapshot = None  # it holds the old weights, which need not stay while the pass makes new ones
    began = time.perf_counter()
    # Training has its own libraries and threads, and its condition for the same bytes: README.
    with nullcontext() if step.kind == "finetune" else one_blas_thread():
        step.apply(model, structure, rows, context)
    seconds = time.perf_counter() - began
    after = state.snapshot = take(model)
    if mark.differs_from(after):
        state.worked.append(step)
    else:
        if first:
            state.before.pop(step.kind, None)  # the model is no other than it was: it teaches nothing
        error = NothingMatched(
            f"the pass {step.name!r} changed nothing",
            found=UNMOVED if step.kind == "finetune" else "the weights already are as the pass would make them",
            hint="leave the pass out, or give --allow-noop",
        )
        state.idle.append(error)
        state.warnings.append(nothing_done(step, error))
    label.settle(model, after)
    invariants.check(model, step.name, after)
    structure = analyse(model, after)
    made = step.ensures(rows)
    state.facts = facts.renamed(state.facts + made, context.renamed)
    _check_facts(state, structure, step.name)
    state.warnings += [f"{step.name}: {warning}" for warning in context.warnings]
    state.steps.append(outcome_of(step, rows, made, context.findings, seconds))
    if step.kind == "finetune" and index + 1 < len(state.passes):
        state.trained = index + 1, model.clone(), list(state.facts)
    return structure


def planned(step: Pass[Any], model: Model, structure: Structure, given: PlanContext) -> list[PlanRow] | NothingMatched:
    """The pass's plan, or why it has nothing to do; a selector without a match is raised, whatever other passes do."""
    try:
        step.requires(model, structure)
        return step.plan(model, structure, given)
    except SelectorUnmatched:
        raise
    except NothingMatched as error:
        return error


def well_ordered(passes: list[Pass[Any]]) -> list[Pass[Any]]:
    """The passes as they are given. Raises UsageError where one cannot come later than another, whatever the model."""
    for place, step in enumerate(passes):
        for earlier in passes[:place]:
            if why := step.follows(earlier):
                raise UsageError(
                    f"{step.name} {why}, and {earlier.name} comes before it",
                    where=f"pass {place + 1} of {len(passes)}",
                    hint=f"put {step.name} before {earlier.name}"
                    if earlier.follows(step) is None
                    else "leave one of the two out",
                )
    return passes


def require_work(passes: Sequence[Pass[Any]], idle: Sequence[NothingMatched], allow_noop: bool) -> None:
    """Raise what the first pass found where no pass had anything to do and that was not allowed."""
    if len(idle) == len(passes) and not allow_noop:
        raise idle[0]


def nothing_done(step: Pass[Any], error: NothingMatched) -> str:
    """The warning for a pass that had nothing to do."""
    found = error.details["found"]
    return f"{step.name} had nothing to do: {error.what}" + (f" ({found})" if found else "")


def outcome_of(
    step: Pass[Any],
    rows: Sequence[PlanRow],
    made: Sequence[Fact] = (),
    findings: Mapping[str, Any] | None = None,
    seconds: float | None = None,
) -> StepOutcome:
    """What the report says of a pass; without findings and seconds where it was only planned."""
    options: dict[str, Any] = step.options.model_dump(mode="json")
    texts = tuple(fact.text for fact in made)
    return StepOutcome(step.name, step.version, options, tuple(rows), findings or {}, texts, seconds)


def _check_facts(state: Run, structure: Structure, where: str) -> None:
    problems = in_order(lambda fact: fact.broken(state.model, structure), state.facts)
    for fact, problem in zip(state.facts, problems, strict=True):
        if problem:
            raise InvariantError(
                f"a fact no longer holds after {where}: {fact.text}",
                where=where,
                found=problem,
                hint="this is a defect of the pass; the reproducer beside the output shows it",
            )
