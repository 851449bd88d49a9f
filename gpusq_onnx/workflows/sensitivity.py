"""`sensitivity`, `plan --sensitivity`: what each group of layers costs when it alone is pruned or quantised.

The result is kept under the digest of all that it depends on: model, data, preprocessing, images, forms, seed, version.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from pydantic import TypeAdapter

from gpusq_onnx.data.source import Source
from gpusq_onnx.data.subset import at_most
from gpusq_onnx.graph.blame import blaming
from gpusq_onnx.pipeline.schedule import Schedule
from gpusq_onnx.progress import NullProgress, Progress
from gpusq_onnx.report.tuning import Look, Sensitivity
from gpusq_onnx.runtime.crew import ALONE, Crew
from gpusq_onnx.tuning.groups import Groups, find_groups
from gpusq_onnx.tuning.kept import Kept
from gpusq_onnx.tuning.report import SensitivityReport
from gpusq_onnx.tuning.sensitivity import measure, work
from gpusq_onnx.tuning.subject import Subject
from gpusq_onnx.tuning.treatments import Treatment, offered
from gpusq_onnx.wording import in_callers_words, worded
from gpusq_onnx.workflows import samples
from gpusq_onnx.workflows.counts import require_counts
from gpusq_onnx.workflows.models import AnyModel, as_file, name_of
from gpusq_onnx.workflows.samples import AnyData, AnyOptions

IMAGES = 64
EXACT = 48


@worded
def sensitivity(
    model: AnyModel,
    *,
    data: AnyData,
    data_options: AnyOptions = None,
    target: str | None = None,
    forms: Sequence[str] = (),
    images: int = IMAGES,
    exact: int | None = EXACT,
    cache: Path | None = None,
    seed: int | None = None,
    progress: Progress = NullProgress(),  # noqa: B008 - it has no state
) -> SensitivityReport:
    """Measure what each group of layers costs in each form.

    Args:
        data, data_options: see `workflows.samples`; no labels are needed.
        target: whose forms are looked at: "ampere", ...; None: INT8 and 2:4.
        forms: only these: "2:4", "int8", "2:4 int8", "w4a8", "2:4 w4a8"; empty: all that the target has.
        images: of the data, evenly spread, to calibrate and measure each group with.
        exact: pairs of group and form that are measured, one of each role, pruned and not, at least; the others are
            estimated. None: all are measured.
        cache: keep the result there, and take what is kept; None: neither.

    Several processes that all call this (`runtime.crew`) share the work, and all get the result.

    Raises:
        UsageError: no data, no image, or a target or form that there is not.
        UnsupportedModelError, UnsupportedDataError, NothingMatched: as `compress`.
    """
    look = look_of(target, forms, images, exact)
    treatments = offered(look.target, look.forms)
    with as_file(model) as path, blaming(path), samples.opened(model, data, data_options, seed) as options:
        subject = Subject.of(path, options)
        groups = find_groups(subject.model, subject.structure, treatments)
        inquiry = Inquiry(subject, groups, treatments, at_most(subject.source, images), exact, cache, Crew.joined())
        found = inquiry.kept()
        if found is None:
            schedule = Schedule(progress, [("sensitivity", inquiry.work)], subject.rate)
            schedule.announce(len(inquiry.source), len(subject.source), "--images N")
            found = inquiry.measure(schedule)
        return report_of(name_of(model), inquiry, found, look)


def look_of(target: str | None, forms: Sequence[str], images: int, exact: int | None) -> Look:
    """How layers are looked at, as callers say it: one form may be a word. Raises UsageError for no image."""
    require_counts(images=images)
    return Look(target, (forms,) if isinstance(forms, str) else tuple(forms), images, exact)


def report_of(name: str, inquiry: Inquiry, found: Sensitivity, look: Look) -> SensitivityReport:
    """What was found, with the model and the data that it was found on."""
    subject = inquiry.subject
    used = subject.settled.describe(subject.source)
    warnings = in_callers_words((*subject.warnings, *([inquiry.problem] if inquiry.problem else [])))
    return SensitivityReport(name, subject.sha256, inquiry.groups, found, used, warnings, look)


@dataclass(frozen=True)
class Inquiry:
    """One look at a model: what the result depends on, and where it is kept.

    Attributes:
        source: the images to look with.
        exact: see `sensitivity`.
        cache: a folder, of the process that leads; None: nothing is kept.
        crew: the processes that share the work.
    """

    subject: Subject
    groups: Groups
    treatments: Sequence[Treatment]
    source: Source
    exact: int | None
    cache: Path | None
    crew: Crew = ALONE

    @property
    def work(self) -> float:
        """What `measure` costs, in runs of one image."""
        return work(self.groups, self.source, self.exact)

    def kept(self) -> Sensitivity | None:
        """What an earlier look found."""
        return self.crew.agreed(self._found)

    def _found(self) -> Sensitivity | None:
        values = self._kept.find()
        return None if values is None else TypeAdapter(Sensitivity).validate_python(values)

    def measure(self, progress: Progress) -> Sensitivity:
        """Find it, and keep it."""
        found = measure(self.subject, self.groups, self.source, self.exact, progress, self.crew)
        if self.crew.leads:
            self._kept.keep(asdict(found))
        return found

    @property
    def problem(self) -> str:
        """Why nothing is kept; "" where it is."""
        return self._kept.problem

    @cached_property
    def _kept(self) -> Kept:
        common = {
            "model": self.subject.sha256,
            "data": self.source.digest(),
            "preprocess": self.subject.source.describe().get("preprocess"),
            "images": len(self.source),
            "forms": [treatment.name for treatment in self.treatments],
            "exact": self.exact,
            "seed": self.subject.options.seed,
        }
        return Kept(self.cache, "sensitivity", common)
