"""`gpusq-onnx apply MODEL...`: run a pipeline and write the new models, each whole; or refuse, and leave nothing.

Under `torchrun` and `accelerate launch` every process runs it; the one of rank 0 writes and speaks.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from typer import Option

from gpusq_onnx.cli import plan as dry
from gpusq_onnx.cli import several
from gpusq_onnx.cli.journal import settings
from gpusq_onnx.cli.memory import require_room
from gpusq_onnx.cli.options import (
    STDOUT,
    CalibrationArgs,
    Full,
    Json,
    Models,
    Output,
    PipelineArgs,
    Quiet,
    Report,
    Seed,
)
from gpusq_onnx.cli.spare import a_model, claim
from gpusq_onnx.errors import UsageError
from gpusq_onnx.runtime.crew import leads
from gpusq_onnx.workflows.places import compressed_path


def apply(
    models: Models,
    pipeline: PipelineArgs,
    data: CalibrationArgs,
    output: Output = None,
    seed: Seed = None,
    report: Report = None,
    json: Json = None,
    full: Full = False,
    dry_run: Annotated[bool, Option("--dry-run", help="Say what would be done, as plan does; write nothing.")] = False,
    quiet: Quiet = False,
) -> None:
    """Prune and quantise: run the passes, check the result, write the new model."""
    if dry_run:
        dry.plan(models, pipeline, data, seed, report, json, full, quiet)
        return
    files = several.matched(models)
    job = _Job(pipeline, data, seed, report, json, full, quiet)
    if output == str(STDOUT):
        job.to_stdout(files)
        return
    places = several.targets(files, output, compressed_path)
    several.for_each(
        files, lambda model, alone: job.run(model, places[model], alone=alone), quiet=quiet, report=report, json=json
    )


@dataclass(frozen=True)
class _Job:
    """What is done to each model; the fields are the verb's options."""

    pipeline: PipelineArgs
    data: CalibrationArgs
    seed: int | None
    report: Path | None
    json: Path | None
    full: bool
    quiet: bool

    def run(self, model: Path, written: Path, *, alone: bool) -> str:
        """Make one model, and show it where it is alone; returns what came of it."""
        from gpusq_onnx.cli.console import publish, show_sheet, show_verdict, warn, width
        from gpusq_onnx.cli.progress import open_progress
        from gpusq_onnx.files import staged
        from gpusq_onnx.graph.io import data_beside
        from gpusq_onnx.report import outline, run
        from gpusq_onnx.runtime.machine import freed_memory_kept
        from gpusq_onnx.workflows.apply import compress

        def ours(path: Path) -> bool:  # the data beside a model that `apply` wrote is that model's
            return a_model(written) or _is_data_of(path, model)

        claim([model], dict.fromkeys((written, data_beside(written)), ours), self.report, self.json)
        leader = leads()
        require_room(settings().max_memory, model)
        with staged() as results:
            with open_progress(quiet=self.quiet or not leader) as progress, freed_memory_kept():
                result = compress(
                    model,
                    self.pipeline.pipeline(),
                    data=self.data.options(self.seed),
                    output=written,
                    allow_noop=self.pipeline.allow_noop,
                    canonical=not self.pipeline.no_canonical,
                    progress=progress,
                    leader=leader,
                    target=self.pipeline.target,
                    results=results,
                )
            if not leader:
                return ""
            for warning in result.warnings:
                warn(warning)
            publish(result.report, str(result), report=self.report, json_target=self.json, results=results)
            results.commit()
            made = result.outcome.output
            said = f"{written}: {made.bytes:,} bytes of {result.outcome.input.bytes:,}" if made else ""
            if self.quiet or self.json == STDOUT or not (alone or self.full):
                return said
            if self.full:
                show_sheet(run.sheet(result.outcome, result.weights))
            else:
                show_verdict(outline.of_run(result.outcome, result.weights, width()))
        return said

    def to_stdout(self, models: Sequence[Path]) -> None:
        """The new model's bytes on stdout, and nothing else there. Raises UsageError where they are not one file."""
        from gpusq_onnx.graph.io import data_beside
        from gpusq_onnx.scratch import Scratch

        if self.json == STDOUT:
            raise UsageError("the model and --json cannot both go to stdout", where="-o -", hint="name a file for one")
        if len(models) > 1:
            raise UsageError(f"{len(models)} models cannot all go to stdout", where="-o -", hint="name a folder, DIR/")
        with Scratch() as folder:
            written = folder / models[0].name
            replace(self, quiet=True).run(models[0], written, alone=True)
            if data_beside(written).exists():
                raise UsageError("a model with external data is two files", where="-o -", hint="name a file with -o")
            sys.stdout.buffer.write(written.read_bytes())
            sys.stdout.buffer.flush()


def _is_data_of(path: Path, model: Path) -> bool:
    """Whether the input keeps weights in this file; the run refuses to write there, and says so."""
    from gpusq_onnx.graph.io import data_files, load

    return path.resolve() in {part.resolve() for part in data_files(load(model))}
