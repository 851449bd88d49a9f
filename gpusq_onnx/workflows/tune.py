"""`tune`: choose a form for each group of layers under a budget, measure it, and write it as a recipe for `apply`.

    sensitivity     what each group costs alone, label-free (`workflows.sensitivity`, kept in the cache)
    search          the convex road over the sums (`tuning.search`)
    measurements    each configuration is made for real by the manager and compared with the dense model on samples that
                    nothing was calibrated with
    rounds          with `finetune`: what is chosen is trained, too, and chosen again by what that brings back
                    (`tuning.trained`)
    result          the cheapest configuration that meets the budget, as a recipe; or GateFailed

The samples are divided: a part prunes and calibrates (`calibrate` of the data options: half of them, at most 128), the
rest is measured on. With `hold_out`, or where something is trained, those that are held out are measured on (a quarter,
at most 256), and the others train. `apply --recipe FILE --data SAME --calibrate N [--hold-out M]` gives the model that
was measured.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.source import Source
from gpusq_onnx.data.subset import at_most as up_to
from gpusq_onnx.data.subset import split
from gpusq_onnx.errors import UsageError
from gpusq_onnx.files import Staging, into, require_place, write_text
from gpusq_onnx.graph.blame import blaming
from gpusq_onnx.marks import first_line
from gpusq_onnx.pipeline import recipe
from gpusq_onnx.pipeline.finetune import TrainingLength
from gpusq_onnx.pipeline.schedule import Schedule
from gpusq_onnx.progress import NullProgress, Progress
from gpusq_onnx.report.tuning import COSTS, Goal, Point, Recovery, Sensitivity
from gpusq_onnx.runtime.crew import Crew
from gpusq_onnx.runtime.ort import Session
from gpusq_onnx.scratch import Scratch
from gpusq_onnx.tuning.ahead import searched
from gpusq_onnx.tuning.budget import Budget, Limit, parse_at_most, parse_budget, parse_packed_size
from gpusq_onnx.tuning.configuration import uniform
from gpusq_onnx.tuning.groups import Groups, find_groups
from gpusq_onnx.tuning.measurer import Measurer, kept_measurements
from gpusq_onnx.tuning.reasons import layers
from gpusq_onnx.tuning.replay import Replay
from gpusq_onnx.tuning.report import Tuning
from gpusq_onnx.tuning.rounds import Measure, Measured, Tuner
from gpusq_onnx.tuning.sensitivity import by_group
from gpusq_onnx.tuning.subject import Subject
from gpusq_onnx.tuning.trained import TrainingRounds
from gpusq_onnx.tuning.treatments import Treatment, offered
from gpusq_onnx.wording import worded
from gpusq_onnx.workflows import samples
from gpusq_onnx.workflows.check import judge_of
from gpusq_onnx.workflows.counts import require_counts
from gpusq_onnx.workflows.models import AnyModel, as_file, name_of
from gpusq_onnx.workflows.samples import AnyData, AnyOptions
from gpusq_onnx.workflows.sensitivity import EXACT, IMAGES, Inquiry, look_of, report_of

MEASUREMENTS = 8
ROUNDS = 3
_MOST_CALIBRATE = 128
_MOST_HELD = 256


@worded
def tune(
    model: AnyModel,
    *,
    data: AnyData,
    data_options: AnyOptions = None,
    budget: str | None = None,
    at_most: str | None = None,
    packed_size: str | None = None,
    output: str | os.PathLike[str] | None = None,
    target: str | None = None,
    forms: Sequence[str] = (),
    images: int = IMAGES,
    exact: int | None = EXACT,
    measurements: int = MEASUREMENTS,
    finetune: int | None = None,
    finetune_steps: int | None = None,
    rounds: int = ROUNDS,
    cache: Path | None = None,
    seed: int | None = None,
    progress: Progress = NullProgress(),  # noqa: B008 - it has no state
    results: Staging | None = None,
) -> Tuning:
    """Choose a form for each group of layers.

    Args:
        data, data_options: see `workflows.samples`; labels only where the budget is about them.
        budget: "agreement>=0.97", "kl<=0.01", "top1-drop<=1", ...: the cheapest configuration that meets it.
        at_most: "40%" of the dense bit operations: the configuration nearest to the dense model at that cost.
        packed_size: "8MB", or "40%" of the dense model's packed bytes (`graph.cost`): the nearest in that size.
        output: the recipe to write, where one is found; None: it is in the result alone.
        target, forms, images, exact, cache: see `workflows.sensitivity`.
        measurements: configurations that are made and measured untrained, beside the uniform ones.
        finetune, finetune_steps: train what is chosen, and choose again: epochs, or steps, as `compress` has them.
        rounds: of that, at most.
        results: write there, and leave it to the caller to commit.

    Several processes that all call this (`runtime.crew`) share the work; all get the result, and one writes.

    Returns:
        What was chosen and why; `Tuning.require()` raises GateFailed where the budget is missed, and then nothing is
        written.

    Raises:
        UsageError: none or several of `budget`, `at_most` and `packed_size`, one that cannot be read or that this model
            or data cannot answer, no data, too few samples to divide, or both `finetune` and `finetune_steps`.
        UnsupportedModelError, UnsupportedDataError, NothingMatched: as `compress`.
    """
    aim = _aim(budget, at_most, packed_size)
    look = look_of(target, forms, images, exact)
    require_counts(rounds=rounds)
    if output is not None:
        require_place(Path(output), "the recipe")
    training = TrainingLength.given(finetune, finetune_steps)
    if training is not None:
        training.require()
    goal = Goal(
        budget,
        at_most,
        measurements,
        None if output is None else os.fspath(output),
        packed_size=packed_size,
        finetune=finetune,
        finetune_steps=finetune_steps,
        rounds=rounds if training else 0,
    )
    treatments = offered(look.target, look.forms)
    with (
        as_file(model) as path,
        blaming(path),
        samples.opened(model, data, data_options, seed) as options,
        Scratch() as folder,
    ):
        crew = Crew.joined()
        subject = _subject(path, options, trained=training is not None)
        calibration, held = _divided(subject)
        if isinstance(aim, Budget):
            _require_truth(aim, held)
        groups = find_groups(subject.model, subject.structure, treatments)
        measurer = Measurer(
            subject=subject,
            groups=groups,
            dense=Replay(Session(path, exact_qdq=True), folder),
            held=held,
            calibrated=len(calibration),
            target=target,
            judge=judge_of(held),
            training=training,
            crew=crew,
            note=progress.note,
            kept=kept_measurements(cache, subject, held, len(calibration), target),
        )
        inquiry = Inquiry(subject, groups, treatments, up_to(calibration, images), exact, cache, crew)
        work = _Work(aim, goal, treatments, groups, measurer, inquiry, crew)
        found, tuner, recovery = work.done(progress)
        shown = report_of(name_of(model), inquiry, found, look)  # while data that came in memory is there
    chosen = tuner.best(work.wanted)
    pipeline = None if chosen is None else measurer.pipeline(chosen.choice, trained=chosen.trained)
    written = "" if pipeline is None else recipe.dumps(pipeline)
    tuning = Tuning(
        sensitivity=shown,
        asked=work.asked,
        chosen=chosen,
        pipeline="" if pipeline is None else str(pipeline),
        recipe=written and first_line(f"tune, {work.asked}", written) + written,
        layers=() if chosen is None else tuple(layers(groups, by_group(found), chosen.choice, goal.cost)),
        points=tuple(tuner.points),
        calibrated=measurer.calibrated,
        measured=len(held),
        failure="" if chosen is not None else work.failure(tuner),
        goal=goal,
        recovery=recovery,
    )
    if output is not None and chosen is not None and crew.leads:
        with into(results) as staging:
            write_text(Path(output), tuning.recipe, staging)
    return tuning


@dataclass(frozen=True)
class _Work:
    """What a call does with the model and the samples that it has opened."""

    aim: Budget | Limit
    goal: Goal
    treatments: Sequence[Treatment]
    groups: Groups
    measurer: Measurer
    inquiry: Inquiry
    crew: Crew

    @property
    def whole(self) -> float:
        """The dense model's cost, of the kind that the goal counts."""
        return self.groups.whole(self.goal.cost)

    @property
    def wanted(self) -> Budget | float:
        """The aim: a budget, or a share of the dense model's cost."""
        return self.aim if isinstance(self.aim, Budget) else self.aim.share(self.whole)

    @property
    def asked(self) -> str:
        """The aim in words."""
        if isinstance(self.aim, Budget):
            return str(self.aim)
        return f"at most {self.aim.said(self.whole)} of the dense {COSTS[self.goal.cost]}"

    def done(self, progress: Progress) -> tuple[Sensitivity, Tuner, Recovery | None]:
        """Find out what each group costs, search, and train what is chosen where the goal says so."""
        kept, source = self.inquiry.kept(), self.measurer.subject.source
        tries = -(-(2 * (len(self.treatments) - 1) + self.goal.measurements) // self.crew.size)
        stages: dict[str, float | None] = {
            "sensitivity": 0.0 if kept else self.inquiry.work,
            "search": tries * self.measurer.work,
        }
        if self.goal.rounds:
            once = self.measurer.training_work(uniform(self.groups, self.treatments[-1]))
            stages["training"] = None if once is None else self.goal.rounds * once
        schedule = Schedule(progress, list(stages.items()), self.measurer.subject.rate)
        schedule.announce(len(source), len(source))
        schedule.start("checking the dense model")
        self._require_question()
        found = kept or self.inquiry.measure(schedule)
        losses = by_group(found)

        def measure(choice: Mapping[str, str], trained: bool) -> Measured:
            made = self.measurer.measured(choice, trained)
            schedule.advance()
            return made

        def search(answer: Measure) -> Tuner:
            tuner = Tuner(self.groups, losses, answer, self.goal.measurements, self.goal.cost)
            tuner.uniform(self.treatments)
            tuner.toward(self.wanted)
            return tuner

        schedule.step(1)
        schedule.start("measuring configurations", tries, stages["search"] or 0.0)
        tuner = searched(search, measure, self.wanted, self.crew)
        again = TrainingRounds(tuner, self.wanted, losses)
        if self.goal.rounds:
            schedule.step(2)
            schedule.start("training what was chosen", self.goal.rounds, stages["training"] or 0.0)
            again.go(self.goal.rounds)
        schedule.finish()
        return found, tuner, again.recovery

    def failure(self, tuner: Tuner) -> str:
        """Why nothing was chosen."""
        if isinstance(self.aim, Limit):
            least = tuner.least()
            size = f": {least * self.whole:,.0f}" if self.goal.cost == "packed" else ""
            return f"the cheapest configuration costs {least:.1%} of the dense {COSTS[self.goal.cost]}{size}"
        return f"none of the {len(tuner.points)} configurations measured: {_best(self.aim, tuner.points)}"

    def _require_question(self) -> None:
        """Raise UsageError for a limit that the dense model keeps, or a budget on a metric that it cannot give."""
        if isinstance(self.aim, Limit):
            if self.aim.share(self.whole) >= 1:
                raise UsageError(
                    "the dense model is within the limit: there is nothing to choose",
                    where="--at-most" if self.goal.at_most is not None else "--packed-size",
                    expected=f"less than its {self.whole:,.0f} {COSTS[self.goal.cost]}",
                    found=self.aim.said(self.whole),
                )
            return
        metric = self.aim.metric
        if metric.name not in self.measurer.metrics(truth=bool(metric.truth)):
            raise UsageError(f"{metric.name} needs {metric.needs}", where="--budget", found=str(self.aim))


def _aim(budget: str | None, at_most: str | None, packed_size: str | None) -> Budget | Limit:
    """What is chosen for. Raises UsageError where it is not one thing, or cannot be read."""
    given = [text for text in (budget, at_most, packed_size) if text is not None]
    if len(given) != 1:
        raise UsageError(
            "one of --budget, --at-most and --packed-size says what to choose for",
            found=" and ".join(given) or "none",
            hint="e.g. --budget 'agreement>=0.97', --at-most 40%, or --packed-size 8MB",
        )
    parse = parse_budget if budget is not None else parse_at_most if at_most is not None else parse_packed_size
    return parse(str(given[0]))


def _subject(path: Path, options: DataOptions, *, trained: bool) -> Subject:
    """The model and its samples, some of them held out where something is trained."""
    subject = Subject.of(path, options)
    if not trained or subject.held is not None:
        return subject
    return subject.holding_out(max(1, min(_MOST_HELD, len(subject.source) // 4)))


def _divided(subject: Subject) -> tuple[Source, Source]:
    """The samples that prune and calibrate, and those that are measured on."""
    if subject.held is None:
        if subject.options.calibrate is None and len(subject.source) < 2:
            raise UsageError(
                "one sample cannot both calibrate and be measured on",
                where="--data",
                expected="2 samples or more",
                hint="give more images; a hundred without labels will do",
            )
        count = subject.options.calibrate or max(1, min(_MOST_CALIBRATE, len(subject.source) // 2))
        return split(subject.source, count)
    return up_to(subject.source, subject.options.calibrate or _MOST_CALIBRATE), subject.held


def _require_truth(budget: Budget, source: Source) -> None:
    """Raise UsageError for a budget on a metric that the data cannot give."""
    if budget.metric.truth and budget.metric.truth not in source.truths:
        raise UsageError(
            f"the budget {budget.metric.name} needs what the data does not have",
            where="--budget",
            expected=budget.metric.needs,
            found=f"{source.kind} data without it",
        )


def _best(budget: Budget, points: Sequence[Point]) -> str:
    values = [point.values[budget.metric.name] for point in points]
    return f"the best has {budget.metric.name} {max(values) if budget.metric.least else min(values):.4g}"
