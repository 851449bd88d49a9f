"""`apply`, `compress` in Python: run a pipeline on a model and write the new one, or refuse and leave nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from gpusq_onnx.files import Staging
from gpusq_onnx.graph.structure import Structure
from gpusq_onnx.pipeline import manager
from gpusq_onnx.pipeline.run import RunOptions
from gpusq_onnx.progress import NullProgress, Progress
from gpusq_onnx.report.prediction import Predicted, predict
from gpusq_onnx.scratch import Scratch
from gpusq_onnx.wording import worded
from gpusq_onnx.workflows import samples
from gpusq_onnx.workflows.models import AnyModel, as_file, name_of
from gpusq_onnx.workflows.pipelines import AnyPasses, as_pipeline
from gpusq_onnx.workflows.places import compressed_path
from gpusq_onnx.workflows.result import Result, as_named
from gpusq_onnx.workflows.samples import AnyData, AnyOptions


@worded
def compress(
    model: AnyModel,
    passes: AnyPasses,
    *,
    data: AnyData = None,
    data_options: AnyOptions = None,
    output: str | os.PathLike[str] | None = None,
    finetune: int | None = None,
    finetune_steps: int | None = None,
    overrides: Iterable[str] = (),
    allow_noop: bool = False,
    canonical: bool = True,
    target: str | None = None,
    seed: int | None = None,
    progress: Progress = NullProgress(),  # noqa: B008 - it has no state
    leader: bool = True,
    results: Staging | None = None,
) -> Result:
    """Prune, quantise and train a model; the result loads in onnxruntime and computes what it says, or is not there.

    Args:
        model: a path, an `onnx.ModelProto`, or what `load` gave; it is not changed.
        passes: what to do: "prune24,qdq-int8", a preset, passes, the `Path` of a recipe (see `workflows.pipelines`).
        data: images or arrays to calibrate and train with (see `workflows.samples`); None: synthetic images, with a
            warning in the result, for passes that need some.
        data_options: how an image becomes an input, and how many are used: the keys of `data.options.DataOptions`.
        output: the file to write; None: the result lies in a scratch file that goes with the `Result`.
        finetune, finetune_steps: insert `distill` after pruning and `qat` after INT8, for so many epochs or steps.
        overrides: texts `PASS.KEY=VALUE`.
        allow_noop: that no pass changes anything is no error.
        canonical: rewrite Einsum, branches and computed weights first, where there are any.
        target: where the model is to run, which the pipeline is made to fit: "ampere", ... (`pipeline.targets`).
        seed: of all that is random.
        leader: of several processes that train together and all call this, the one that writes.
        results: write there, and leave it to the caller to commit.

    Raises:
        UsageError: a missing file, an unknown pass or option, an output equal to the input or in no folder.
        UnsupportedModelError, UnsupportedDataError, NothingMatched: the model or the data cannot be used.
        PassFailed: our fault; with `output`, a reproducer lies beside it.
        EnvironmentLacking: a library that a pass needs is missing.
    """
    pipeline = as_pipeline(passes, finetune=finetune, finetune_steps=finetune_steps, overrides=overrides)
    scratch = Scratch() if output is None else None
    written = scratch.path / compressed_path(Path(name_of(model))).name if scratch else Path(output or "")
    weights: list[Predicted] = []

    def look(structure: Structure) -> None:
        weights.extend(predict(structure))

    with as_file(model) as path, samples.opened(model, data, data_options, seed) as given:
        options = RunOptions(given, allow_noop, canonical, target, progress)
        kept = scratch is None
        outcome = manager.run(
            path, written, pipeline, options, leader=leader, results=results, reproducible=kept, look=look
        )
    outcome = as_named(outcome, model, data)
    if scratch and outcome.output:
        outcome = replace(outcome, output=replace(outcome.output, path=written.name))
    return Result(
        outcome,
        tuple(weights),
        path=written,
        _original=model,
        _data=data,
        _data_options=data_options,
        _scratch=scratch,
    )
