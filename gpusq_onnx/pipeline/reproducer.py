"""What a pass that fails by our fault leaves beside the output: all that shows the failure again.

    OUTPUT.reproducer/model.onnx        the failing pass's input; in its metadata the facts that held
                      recipe.toml       the pipeline from that pass on
                      data.toml         the data options
                      before-prune.onnx, before-quantise.onnx   teachers that the rest learns from and does not make
                      error.txt         the traceback

The input is made again by running the passes before the failing one, but not the training: after the last
learning pass its result is taken as it was.
"""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from gpusq_onnx.errors import GpusqError, PassFailed, UnsupportedModelError, of_an_interrupt, of_the_machine
from gpusq_onnx.graph import io
from gpusq_onnx.graph.structure import analyse
from gpusq_onnx.pipeline import facts, recipe
from gpusq_onnx.pipeline.execute import execute
from gpusq_onnx.pipeline.grammar import Pipeline, Step
from gpusq_onnx.pipeline.run import FACTS, Run, RunOptions, begin
from gpusq_onnx.scratch import Scratch


@contextmanager
def reproducer(
    path: Path, output: Path | None, pipeline: Pipeline, index: int, state: Run, what: str | None = None
) -> Iterator[None]:
    """Run one pass, or `what` comes after it, inside; where that fails by our fault, leave the folder beside `output`.

    Raises:
        PassFailed: names the pass, or says `what`.
        UnsupportedModelError: something fails in a model that does not run as it came.
    """
    try:
        yield
    except Exception as error:
        if of_an_interrupt(error):
            raise KeyboardInterrupt from error
        if of_the_machine(error):
            raise  # nothing to reproduce
        if isinstance(error, GpusqError) and error.exit_code != PassFailed.exit_code:
            raise
        if state.trial is not None and state.trial.outcome == "failed":
            raise UnsupportedModelError(
                "onnxruntime does not run the model on the data",
                found=state.trial.said.strip().splitlines()[0],
                hint="is that what the model takes, in size and batch? Else the export went wrong",
            ) from error
        found = f"{type(error).__name__}: {error}"
        hint = "report it; with an output file, what shows it again is written beside that"
        if output is not None:
            folder = output.with_name(output.name + ".reproducer")
            try:
                write(folder, path, pipeline, index, state, "".join(traceback.format_exception(error)))
                again = f"--recipe {folder}/recipe.toml --data-options {folder}/data.toml {folder}/model.onnx"
                hint = f"report it with the folder {folder}; to see it again: gpusq-onnx apply {again}"
            except Exception as second:
                hint = f"report it; no reproducer could be written ({type(second).__name__}: {second})"
        failed = what or f"the pass {pipeline.steps[index].name!r} failed"
        raise PassFailed(failed, found=found, hint=hint) from error


def write(folder: Path, path: Path, pipeline: Pipeline, index: int, state: Run, error: str) -> None:
    """Make the folder, whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with Scratch(folder.parent) as scratch:
        partial = scratch / folder.name
        partial.mkdir()
        replay = _replay(path, index, state)
        steps = _with_teachers(pipeline.steps, index, replay, partial, folder)
        replay.model.set_metadata({FACTS: facts.dumps(replay.facts) if replay.facts else None})
        io.save(replay.model, partial / "model.onnx")
        (partial / "recipe.toml").write_text(recipe.dumps(Pipeline(steps)), encoding="utf-8")
        (partial / "data.toml").write_text(state.data.to_toml(), encoding="utf-8")
        (partial / "error.txt").write_text(error, encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)


def _replay(path: Path, index: int, state: Run) -> Run:
    """The run as it was before the pass at `index`."""
    done, model, known = state.trained or (0, io.load(path), None)
    replay = begin(model, state.passes, RunOptions(state.data, allow_noop=True), state.trials)
    if known is not None:
        replay.facts, replay.before = list(known), dict(state.before)
    structure = analyse(model)
    for number in range(done, index):
        structure = execute(replay, number, structure)
    return replay


def _with_teachers(steps: tuple[Step, ...], index: int, replay: Run, partial: Path, folder: Path) -> tuple[Step, ...]:
    """The steps from `index` on, those that learn naming the models that no pass among them makes."""
    rest = []
    for number in range(index, len(steps)):
        step = steps[number]
        made_again = {earlier.kind for earlier in replay.passes[index:number]}
        for option, kind in replay.passes[number].models.items():
            if option in step.options or kind in made_again or kind not in replay.before:
                continue
            name = f"before-{kind}.onnx"
            if not (partial / name).exists():
                io.save(replay.before[kind], partial / name)
            step = replace(step, options={**step.options, option: str((folder / name).absolute())})
        rest.append(step)
    return tuple(rest)
