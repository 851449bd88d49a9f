"""`gpusq-onnx plan MODEL...`: what `apply` would do to each tensor, and why; no model is written."""

from pathlib import Path
from typing import Annotated

from typer import Option

from gpusq_onnx.cli import several
from gpusq_onnx.cli.options import (
    STDOUT,
    DataArgs,
    Full,
    Json,
    Models,
    PipelineArgs,
    Quiet,
    Report,
    Seed,
    keep_apart,
)
from gpusq_onnx.cli.tune import SensitivityArgs
from gpusq_onnx.errors import UsageError

SCREEN = 40  # groups of layers


def plan(
    models: Models,
    pipeline: PipelineArgs,
    data: DataArgs,
    seed: Seed = None,
    report: Report = None,
    json: Json = None,
    full: Full = False,
    quiet: Quiet = False,
    sensitivity: Annotated[
        bool,
        Option("--sensitivity", help="Instead: what each group of layers costs when it alone is pruned or quantised."),
    ] = False,
    look: SensitivityArgs = SensitivityArgs(),
) -> None:
    """Show what apply would do to each tensor, and why, with totals before and after; writes no model."""
    if look.given and not sensitivity:
        raise UsageError("--forms, --images, --exact and --no-cache go with --sensitivity", hint="add --sensitivity")

    def one(model: Path, alone: bool) -> str:
        keep_apart([model], report, json)
        if sensitivity:
            return _sensitivity(model, pipeline, data, look, seed, report, json, quiet, full=full, alone=alone)
        return _planned(model, pipeline, data, seed, report, json, quiet, full=full, alone=alone)

    several.for_each(several.matched(models), one, quiet=quiet, report=report, json=json)


def _planned(
    model: Path,
    pipeline: PipelineArgs,
    data: DataArgs,
    seed: int | None,
    report: Path | None,
    json: Path | None,
    quiet: bool,
    *,
    full: bool,
    alone: bool,
) -> str:
    from gpusq_onnx.cli.console import publish, show, show_table, show_verdict, warn, width
    from gpusq_onnx.cli.progress import open_progress
    from gpusq_onnx.report import outline, run
    from gpusq_onnx.workflows.plan import plan as plan_model

    with open_progress(quiet=quiet) as progress:
        found = plan_model(
            model,
            pipeline.pipeline(),
            data=data.options(seed),
            allow_noop=pipeline.allow_noop,
            canonical=not pipeline.no_canonical,
            target=pipeline.target,
            progress=progress,
        )
    for warning in found.warnings:
        warn(warning)
    publish(found.report, str(found), report=report, json_target=json)
    said = ", ".join(f"{number} {kernel}" for kernel, number in found.kernels.items())
    if quiet or json == STDOUT or not (alone or full):
        return said
    if not full:
        show_verdict(outline.of_plan(found.outcome, found.weights, width()))
        return said
    show(f"{found.pipeline}\n")
    for step in found.steps:
        rows = [
            [row.tensor, row.module or "-", row.role, row.op, str(list(row.shape)), row.decision, row.reason]
            for row in step.rows
        ]
        show_table([step.name, "module", "role", "op", "shape", "decision", "reason"], rows)
        counts = ", ".join(f"{number} {decision}" for decision, number in step.decisions.items())
        show(f"{step.name}: {counts}\n")
    show("\n".join([*run.architecture(found.outcome), "", *run.totals(found.outcome)]))
    return said


def _sensitivity(
    model: Path,
    pipeline: PipelineArgs,
    data: DataArgs,
    look: SensitivityArgs,
    seed: int | None,
    report: Path | None,
    json: Path | None,
    quiet: bool,
    *,
    full: bool,
    alone: bool,
) -> str:
    """What each group of layers costs; the look at it, where the model is alone."""
    from gpusq_onnx.cli.console import publish, show, show_table, warn
    from gpusq_onnx.cli.progress import open_progress
    from gpusq_onnx.workflows.sensitivity import sensitivity

    if pipeline.passes or pipeline.recipe:
        raise UsageError(
            "--sensitivity looks at every form that a target has, not at passes",
            found="--passes" if pipeline.passes else "--recipe",
            hint="leave it out; --forms names the forms",
        )
    with open_progress(quiet=quiet) as progress:
        found = sensitivity(
            model,
            data=data.options(seed),
            target=pipeline.target,
            progress=progress,
            **look.options(),  # type: ignore[arg-type]  # by name
        )
    for warning in found.warnings:
        warn(warning)
    publish(found.report, str(found), report=report, json_target=json)
    notes = found.notes()
    if not quiet and json != STDOUT and alone:
        header, rows = found.rows(None if full else SCREEN)
        show_table(header, rows)
        if len(rows) < len(found.groups.groups):
            notes.append(f"the {len(rows)} of {len(found.groups.groups)} groups that cost most; --full has all")
        show("\n" + "\n".join(notes))
    return notes[0] if notes else ""
