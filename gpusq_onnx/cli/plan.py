"""`gpusq-onnx plan MODEL`: what `apply` would do to each tensor, and why; no model is written."""

from gpusq_onnx.cli.options import STDOUT, DataArgs, Json, ModelPath, PipelineArgs, Quiet, Report, Seed, keep_apart


def plan(
    model: ModelPath,
    pipeline: PipelineArgs,
    data: DataArgs,
    seed: Seed = None,
    report: Report = None,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Show what apply would do to each tensor, and why, with totals before and after; writes no model."""
    from gpusq_onnx.cli.console import open_progress, publish, show, show_table, warn
    from gpusq_onnx.pipeline import manager
    from gpusq_onnx.report import run

    keep_apart([model], report, json)
    with open_progress(quiet=quiet) as progress:
        outcome = manager.plan(
            model,
            pipeline.pipeline(),
            data=data.options(seed),
            allow_noop=pipeline.allow_noop,
            progress=progress,
            canonical=not pipeline.no_canonical,
            target=pipeline.target,
        )
    for warning in outcome.warnings:
        warn(warning)
    publish(run.document(outcome), run.digest(outcome), report=report, json_target=json)
    if quiet or json == STDOUT:
        return
    show(f"{outcome.pipeline}\n")
    for step in outcome.steps:
        rows = [
            [row.tensor, row.module or "-", row.role, row.op, str(list(row.shape)), row.decision, row.reason]
            for row in step.rows
        ]
        show_table([step.name, "module", "role", "op", "shape", "decision", "reason"], rows)
        counts = ", ".join(f"{number} {decision}" for decision, number in step.decisions.items())
        show(f"{step.name}: {counts}\n")
    show("\n".join([*run.architecture(outcome), "", *run.totals(outcome)]))
