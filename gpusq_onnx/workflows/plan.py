"""`plan`: what `compress` would do to each tensor, and why, with the totals that it would reach; nothing is written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gpusq_onnx.graph.structure import Structure
from gpusq_onnx.pipeline import manager
from gpusq_onnx.pipeline.base import PlanRow
from gpusq_onnx.pipeline.run import RunOptions
from gpusq_onnx.progress import NullProgress, Progress
from gpusq_onnx.report.prediction import Predicted, predict
from gpusq_onnx.wording import worded
from gpusq_onnx.workflows import samples
from gpusq_onnx.workflows.models import AnyModel, as_file
from gpusq_onnx.workflows.pipelines import AnyPasses, as_pipeline
from gpusq_onnx.workflows.result import Plan, as_named
from gpusq_onnx.workflows.samples import AnyData, AnyOptions


@worded
def plan(
    model: AnyModel,
    passes: AnyPasses,
    *,
    data: AnyData = None,
    data_options: AnyOptions = None,
    finetune: int | None = None,
    finetune_steps: int | None = None,
    overrides: Iterable[str] = (),
    allow_noop: bool = False,
    canonical: bool = True,
    target: str | None = None,
    seed: int | None = None,
    progress: Progress = NullProgress(),  # noqa: B008 - it has no state
) -> Plan:
    """What `compress` with the same arguments would do.

    Raises:
        UsageError, UnsupportedModelError, UnsupportedDataError, NothingMatched: as `compress`.
    """
    pipeline = as_pipeline(passes, finetune=finetune, finetune_steps=finetune_steps, overrides=overrides)
    weights: list[Predicted] = []

    def look(structure: Structure, rows: Sequence[PlanRow]) -> None:
        weights.extend(predict(structure, rows))

    with as_file(model) as path, samples.opened(model, data, data_options, seed) as given:
        options = RunOptions(given, allow_noop, canonical, target, progress)
        outcome = manager.plan(path, pipeline, options, look=look)
    return Plan(as_named(outcome, model, data), tuple(weights))
