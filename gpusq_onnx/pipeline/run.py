"""One pipeline under way: how it is run, the model, its data and facts, and what each pass leaves to later ones.

What is kept of earlier models is kept for passes of kind "finetune" only: their teachers, and what training took hours
to make, so that a later failure need not repeat it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from gpusq_onnx.data.opening import open_source
from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.source import Source
from gpusq_onnx.data.subset import at_most, held_out
from gpusq_onnx.errors import NothingMatched, UnsupportedModelError, UsageError
from gpusq_onnx.graph.id_ranges import table_rows
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.snapshot import Snapshot
from gpusq_onnx.graph.structure import analyse
from gpusq_onnx.graph.widening import holds_bfloat16, widen
from gpusq_onnx.marks import METADATA
from gpusq_onnx.pipeline import facts
from gpusq_onnx.pipeline.base import Fact, Pass
from gpusq_onnx.pipeline.outcome import StepOutcome
from gpusq_onnx.pipeline.schedule import Schedule
from gpusq_onnx.progress import NullProgress, Progress
from gpusq_onnx.runtime.ort import Feed
from gpusq_onnx.runtime.trial import Trial, Trials

CALIBRATED = 128  # images that prune and calibrate by default: docs/benchmarks.md, "How many images"
FACTS = f"{METADATA}facts"  # metadata of a reproducer's model only
SYNTHETIC = (
    "NO DATA was given (--data): synthetic images are used instead. The model is legal and its "
    "accuracy is unknown; calibrate with real images (--data FOLDER) before anybody ships it"
)


@dataclass(frozen=True)
class RunOptions:
    """How a pipeline is planned and run.

    Attributes:
        data: calibration data; without a path, passes that need data get synthetic images, with a warning.
        allow_noop: that no pass changes anything is no error.
        canonical: put the pass `canonical` first where it has something to do (see `pipeline.automatic`).
        target: a name of `pipeline.targets`, which the pipeline is made to fit.
        progress: where long work reports.
        numbered: stages are reported with the number of their step; not where all is a stage of longer work.
    """

    data: DataOptions
    allow_noop: bool = False
    canonical: bool = True
    target: str | None = None
    progress: Progress = field(default_factory=NullProgress)
    numbered: bool = True


@dataclass
class Run:
    """One pipeline under way.

    Attributes:
        trials: runs files in a process of its own.
        source: all samples that are used, of those `offered`, without those held out; `calibration`: those for passes
            that do not train.
        sample: a batch of one, or of the fixed size, that the model is tried and its result proven with.
        trial: how the model that came in ran on it; None: not tried.
        folder: where learning passes keep checkpoints and logs, in a folder each; None: nowhere.
        before: see `Context.before`.
        worked: the passes that had something to do, so far.
        idle: what was said by those that changed nothing.
        snapshot: of the model as it is, between two passes.
        schedule: how long the passes take; None: not asked.
        trained: after the last pass of kind "finetune": the number of passes done, the model and the facts then.
    """

    model: Model
    passes: Sequence[Pass[Any]]
    source: Source | None
    data: DataOptions
    progress: Progress
    allow_noop: bool
    trials: Trials
    offered: int = 0
    calibration: Source | None = None
    sample: Feed | None = None
    trial: Trial | None = None
    folder: Path | None = None
    facts: list[Fact] = field(default_factory=list)
    steps: list[StepOutcome] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    before: dict[str, Model] = field(default_factory=dict)
    worked: list[Pass[Any]] = field(default_factory=list)
    idle: list[NothingMatched] = field(default_factory=list)
    snapshot: Snapshot | None = None
    trained: tuple[int, Model, list[Fact]] | None = None
    schedule: Schedule | None = None
    numbered: bool = True

    @property
    def images(self) -> int:
        """How many samples there are for all passes together."""
        return 0 if self.source is None else len(self.source)


def begin(model: Model, passes: Sequence[Pass[Any]], options: RunOptions, trials: Trials) -> Run:
    """See that every pass can work here, and open the data. Raises UsageError where one would learn from no data."""
    data = options.data
    state = Run(model, passes, None, data, options.progress, options.allow_noop, trials, facts=take_facts(model))
    state.numbered = options.numbered
    for step in passes:
        step.ready()
    learning = [step.name for step in passes if step.kind == "finetune"]
    if learning and data.path is None:
        raise UsageError(
            f"the pass {learning[0]!r} learns from images, and there are none",
            where="--data",
            hint="give --data FOLDER; a thousand images without labels will do",
        )
    if data.path is not None or any(step.needs_data for step in passes):
        state.source, state.offered = _opened(data, model, all_of_it=bool(learning))
        if data.hold_out is not None:
            _, state.source = held_out(state.source, data.hold_out)
        state.calibration = state.source
        count = data.calibrate or (CALIBRATED if learning else None)
        if count is not None:
            state.calibration = at_most(state.source, count)
        state.sample = sample_of(state.source)
        if data.path is None:
            state.warnings.append(SYNTHETIC)
    return state


def _opened(data: DataOptions, model: Model, *, all_of_it: bool) -> tuple[Source, int]:
    """The samples, and how many the data have.

    No more than what calibrating needs, where the caller names no number and nothing learns from all.
    """
    rows = partial(table_rows, model)
    source = open_source(data, model.inputs(), rows)
    offered = len(source)
    said = data.samples or data.calibrate or data.hold_out
    unsaid = data.path is not None and not (all_of_it or said)
    if unsaid and source.random_access and offered > CALIBRATED:
        source = open_source(data.model_copy(update={"samples": CALIBRATED}), model.inputs(), rows)
    return source, offered


def scheduled(state: Run) -> Schedule:
    """How long the passes take, by the time of `Run.trial` where there was one."""
    lengths = [0 if source is None else len(source) for source in (state.source, state.calibration)]
    given = state.data.path is not None
    works = [(step.name, step.work(lengths[step.kind != "finetune"], given)) for step in state.passes]
    return Schedule(state.progress, works, rate_of(state.trial, state.sample), numbered=state.numbered)


def rate_of(trial: Trial | None, sample: Feed | None) -> float | None:
    """Seconds that one sample took in a trial with `sample`; None where none was timed."""
    rows = max([1, *(len(x) for x in (sample or {}).values() if x.ndim)])
    return None if trial is None or trial.seconds is None else trial.seconds / rows


def widened(model: Model, passes: Sequence[Pass[Any]]) -> list[str]:
    """Make a model in bfloat16 float32 where passes compute with it, in place; what is to be said of that.

    It stays as it is where weights alone are pruned or trained.
    """
    if not holds_bfloat16(model):
        return []
    runs = any(step.kind == "quantise" or (step.needs_data and step.kind != "finetune") for step in passes)
    if not runs:
        return []
    border = [spec.name for spec in (*model.inputs(), *model.outputs()) if spec.dtype.name == "bfloat16"]
    widen(model)
    also = f", inputs and outputs too ({', '.join(border)})" if border else ""
    return [f"bfloat16, which no kernel of onnxruntime computes on a CPU, became float32{also}; fp16 makes it smaller"]


def sample_of(source: Source) -> Feed | None:
    """A batch of one, or of the fixed size; None where there is no sample."""
    return next((batch.feed for batch in source.batches(1)), None)


def take_facts(model: Model) -> list[Fact]:
    """The facts that a reproducer's model brings along, which go out of its metadata.

    Raises:
        UnsupportedModelError: they cannot be read, or do not hold.
    """
    text = model.metadata.get(FACTS)
    if text is None:
        return []
    model.set_metadata({FACTS: None})
    found = facts.loads(text)
    structure = analyse(model)
    broken = [problem for fact in found if (problem := fact.broken(model, structure))]
    if broken:
        raise UnsupportedModelError("a fact in the model's metadata does not hold", where=FACTS, found=broken[0])
    return found
