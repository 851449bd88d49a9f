"""`gpusq-onnx apply MODEL`: run a pipeline and write the new model; or refuse, and leave nothing.

Under `torchrun` and `accelerate launch` every process runs it; the one of rank 0 writes and speaks.
"""

import os

from gpusq_onnx.cli.memory import MaxMemory, at_most
from gpusq_onnx.cli.options import (
    STDOUT,
    DataArgs,
    Full,
    Json,
    ModelPath,
    Output,
    PipelineArgs,
    Quiet,
    Report,
    Seed,
    keep_apart,
)


def apply(
    model: ModelPath,
    pipeline: PipelineArgs,
    data: DataArgs,
    output: Output = None,
    seed: Seed = None,
    report: Report = None,
    json: Json = None,
    full: Full = False,
    quiet: Quiet = False,
    max_memory: MaxMemory = None,
) -> None:
    """Prune and quantise: run the passes, check the result, write the new model."""
    from gpusq_onnx.cli.console import open_progress, publish, show, show_verdict, warn, width
    from gpusq_onnx.files import staged
    from gpusq_onnx.report import outline
    from gpusq_onnx.workflows.apply import compress

    written = output or model.with_suffix(".gpusq.onnx")
    keep_apart([model, written], report, json)
    leader = os.environ.get("RANK", "0") == "0"
    with at_most(max_memory, model), staged() as results:
        with open_progress(quiet=quiet or not leader) as progress:
            result = compress(
                model,
                pipeline.pipeline(),
                data=data.options(seed),
                output=written,
                allow_noop=pipeline.allow_noop,
                canonical=not pipeline.no_canonical,
                progress=progress,
                leader=leader,
                target=pipeline.target,
                results=results,
            )
        if not leader:
            return
        for warning in result.warnings:
            warn(warning)
        publish(result.report, str(result), report=report, json_target=json, results=results)
        results.commit()
        if quiet or json == STDOUT:
            return
        if full:
            show(str(result))
        else:
            show_verdict(outline.of_run(result.outcome, width()))
