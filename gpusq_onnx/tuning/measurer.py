"""Makes configurations for real, trained where that is asked for, and measures them on samples that are held out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.data.source import Source
from gpusq_onnx.data.subset import at_most
from gpusq_onnx.graph.io import file_digest
from gpusq_onnx.pipeline import finetune, manager, table
from gpusq_onnx.pipeline.grammar import Pipeline
from gpusq_onnx.pipeline.run import RunOptions
from gpusq_onnx.pipeline.schedule import CALIBRATING, SECOND_ORDER
from gpusq_onnx.progress import NullProgress
from gpusq_onnx.runtime.compare.difference import OutputsMetric
from gpusq_onnx.runtime.compare.outputs import Loaded, compare
from gpusq_onnx.runtime.crew import Crew
from gpusq_onnx.runtime.ort import Feed, Session
from gpusq_onnx.scratch import Scratch
from gpusq_onnx.tasks.classification import Classification
from gpusq_onnx.tasks.kinds import image_shape
from gpusq_onnx.tuning.budget import values_of
from gpusq_onnx.tuning.configuration import pipeline_of
from gpusq_onnx.tuning.divergence import Divergence
from gpusq_onnx.tuning.groups import Groups
from gpusq_onnx.tuning.kept import Kept
from gpusq_onnx.tuning.replay import Replay
from gpusq_onnx.tuning.rounds import Measured
from gpusq_onnx.tuning.subject import Subject

_FEW = 8  # samples that show which metrics there are


class _Notes(NullProgress):
    """Hands the stages of a run on as notes."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note, self._label = note, ""

    def start(self, label: str, total: int | None = None, work: float = 0.0) -> None:
        self._label = label
        self._note(label)

    def note(self, text: str) -> None:
        self._note(f"{self._label}, {text}")


@dataclass(frozen=True, kw_only=True)
class Measurer:
    """Makes and measures.

    Attributes:
        dense: the subject's model, as it is compared with.
        held: the samples to measure on.
        calibrated: of the subject's samples, those that prune and calibrate.
        judge: makes the metric over all outputs, where the data has a truth for one.
        training: None: nothing is trained.
        crew: the processes that train together.
        note: gets a few words on what is under way.
        kept: what was measured before.
    """

    subject: Subject
    groups: Groups
    dense: Replay
    held: Source
    calibrated: int
    target: str | None
    judge: Callable[[], OutputsMetric] | None
    training: finetune.TrainingLength | None
    crew: Crew
    note: Callable[[str], None]
    kept: Kept

    @property
    def work(self) -> float:
        """What one choice costs at most, in runs of one image: to prune, to calibrate, and both models to compare."""
        return self.calibrated * (SECOND_ORDER + CALIBRATING) + 2 * len(self.held)

    def training_work(self, choice: Mapping[str, str]) -> float | None:
        """What a choice costs that is trained, in runs of one image; None where that cannot be known."""
        passes = table.resolve(self.pipeline(choice, trained=True))
        count = len(self.subject.source)
        works = [step.work(count if step.kind == "finetune" else self.calibrated, True) for step in passes]
        known = [work for work in works if work is not None]
        return sum(known) + 2 * len(self.held) if len(known) == len(works) else None

    def pipeline(self, choice: Mapping[str, str], *, trained: bool) -> Pipeline:
        """What makes a settled choice."""
        made = pipeline_of(self.subject, self.groups, choice)
        if not trained or self.training is None:
            return made
        return finetune.insert(made, self.training)

    def measured(self, choice: Mapping[str, str], trained: bool) -> Measured:
        """A settled choice, made and compared; where it is trained, by all processes together."""
        pipeline = self.pipeline(choice, trained=trained)

        def find() -> Measured | None:
            values = self.kept.find(pipeline=str(pipeline))
            return None if values is None else Measured(**values)

        known = self.crew.agreed(find) if trained else find()
        if known is not None:
            return known
        made = self._made(pipeline, trained)
        if self.crew.leads or not trained:
            self.kept.keep(asdict(made), pipeline=str(pipeline))
        return made

    def _made(self, pipeline: Pipeline, trained: bool) -> Measured:
        subject = self.subject
        with Scratch() as folder:
            path = folder / "tuned.onnx"
            if len(pipeline.steps) == len(subject.first):
                return Measured(self._compared(subject.path, self.dense, self.held), 1.0)
            data = subject.options.model_copy(update={"calibrate": self.calibrated})
            options = RunOptions(data, target=self.target, progress=_Notes(self.note), numbered=False)
            writes = self.crew.leads or not trained
            outcome = manager.run(subject.path, path, pipeline, options, leader=writes, reproducible=False)

            def found() -> Measured:
                values = self._compared(path, self.dense, self.held)
                return Measured(values, outcome.after.total["packed_bytes"] / self.groups.packed)

            return self.crew.agreed(found) if trained else found()

    def metrics(self, *, truth: bool) -> set[str]:
        """Which metrics the model and the data give.

        Args:
            truth: whether those count that need one: all that is held out is looked at then, else a few samples.
        """
        path, held = self.subject.path, self.held if truth else at_most(self.held, _FEW)
        return set(self._compared(path, Session(path, exact_qdq=True), held))

    def _compared(self, path: Path, dense: Loaded, held: Source) -> dict[str, float]:
        image = image_shape(spec.shape for spec in self.subject.model.inputs())
        divergence, left = Divergence(image), [len(held)]

        def look(
            feed: Feed, dense: Mapping[str, NDArray[np.generic]], other: Mapping[str, NDArray[np.generic]]
        ) -> None:
            rows = len(next(iter(feed.values())))
            counting = min(rows, left[0])
            left[0] -= counting
            sides = [
                {name: x[:counting] if x.ndim and len(x) == rows else x for name, x in side.items()}
                for side in (dense, other)
            ]
            divergence.update(*sides)

        found = compare(dense, path, held, metric=Classification, judge=self.judge, on_batch=look)
        return values_of(found, divergence.result())


def kept_measurements(cache: Path | None, subject: Subject, held: Source, calibrated: int, target: str | None) -> Kept:
    """Where measurements lie, in the folder `cache`; nowhere where the truth is a folder of label maps."""
    options = subject.options
    truth = [file_digest(path) for path in (options.classes, options.annotations) if path is not None]
    common = {
        "model": subject.sha256,
        "data": [subject.source.digest(), held.digest(), *truth],
        "preprocess": subject.source.describe().get("preprocess"),
        "calibrated": calibrated,
        "target": target,
        "seed": options.seed,
    }
    return Kept(None if options.masks is not None else cache, "tune", common)
