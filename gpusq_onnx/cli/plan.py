"""`gpusq-onnx plan MODEL...`: what `apply` would do to each tensor, and why; no model is written."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from gpusq_onnx.cli import several
from gpusq_onnx.cli.options import (
    STDOUT,
    CalibrationArgs,
    Full,
    Json,
    Models,
    PipelineArgs,
    Quiet,
    Report,
    Seed,
)
from gpusq_onnx.cli.spare import claim
from gpusq_onnx.cli.tune import SensitivityArgs
from gpusq_onnx.runtime.crew import leads

SCREEN = 40  # groups of layers


@dataclass(frozen=True)
class _Asked:
    """What a look at a model takes and where its result goes, of a plan and of sensitivity alike."""

    pipeline: PipelineArgs
    data: CalibrationArgs
    seed: int | None
    report: Path | None
    json: Path | None
    quiet: bool
    full: bool

    def publish(self, found: Any) -> None:
        """The warnings, and what `--report` and `--json` ask for."""
        from gpusq_onnx.cli.console import publish, warn

        for warning in found.warnings:
            warn(warning)
        publish(found.report, str(found), report=self.report, json_target=self.json)

    @property
    def shown(self) -> bool:
        """Whether stdout is free for a screen."""
        return not self.quiet and self.json != STDOUT


def plan(
    models: Models,
    pipeline: PipelineArgs,
    data: CalibrationArgs,
    seed: Seed = None,
    report: Report = None,
    json: Json = None,
    full: Full = False,
    quiet: Quiet = False,
    sensitivity: Annotated[
        bool,
        Option("--sensitivity", help="Instead: what each group of layers costs alone."),
    ] = False,
    look: SensitivityArgs = SensitivityArgs(),
) -> None:
    """Show what apply would do to each tensor, and why, with totals before and after; writes no model."""
    asked = _Asked(pipeline, data, seed, report, json, quiet, full)

    def one(model: Path, alone: bool) -> str:
        claim([model], {}, report, json)
        return _sensitivity(model, asked, look, alone) if sensitivity else _planned(model, asked, alone)

    several.for_each(several.matched(models), one, quiet=quiet, report=report, json=json)


def _planned(model: Path, asked: _Asked, alone: bool) -> str:
    from gpusq_onnx.cli.console import show, show_sheet, show_table, show_verdict, width
    from gpusq_onnx.cli.progress import open_progress
    from gpusq_onnx.report import outline, run
    from gpusq_onnx.report.sheet import Grid
    from gpusq_onnx.workflows.plan import plan as plan_model

    pipeline, data = asked.pipeline, asked.data.options(asked.seed)
    with open_progress(quiet=asked.quiet) as progress:
        found = plan_model(
            model,
            pipeline.pipeline(),
            data=data,
            allow_noop=pipeline.allow_noop,
            canonical=not pipeline.no_canonical,
            target=pipeline.target,
            progress=progress,
        )
    asked.publish(found)
    said = ", ".join(f"{number} {kernel}" for kernel, number in found.kernels.items())
    if not asked.shown or not (alone or asked.full):
        return said
    if not asked.full:
        show_verdict(outline.of_plan(found.outcome, found.weights, width(), data))
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
    show_sheet([*run.architecture(found.outcome), Grid(run.TOTALS, run.total_rows(found.outcome))])
    return said


def _sensitivity(model: Path, asked: _Asked, look: SensitivityArgs, alone: bool) -> str:
    """What each group of layers costs; the look at it, where the model is alone."""
    from gpusq_onnx.cli.console import show_sheet
    from gpusq_onnx.cli.progress import open_progress
    from gpusq_onnx.workflows.sensitivity import sensitivity

    with open_progress(quiet=asked.quiet or not leads()) as progress:
        found = sensitivity(
            model,
            data=asked.data.options(asked.seed),
            target=asked.pipeline.target,
            progress=progress,
            **look.options(),
        )
    if not leads():
        return ""
    asked.publish(found)
    notes = found.notes()
    if asked.shown and alone:
        show_sheet(found.sheet(None if asked.full else SCREEN), None if asked.full else "--full")
    return notes[0] if notes else ""
