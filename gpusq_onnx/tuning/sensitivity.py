"""What each group costs when it alone is pruned or quantised: the divergence of the outputs from the dense model's.

    exact       the model with one group changed runs on the images (`variants`, `divergence`)
    estimated   cost = gain(role, depth) * error(group, form)   (`estimate`), where not every pair is measured

One half of the images prunes and calibrates, the other is measured on: a mask fits the images that chose it.

Source: HAWQ (arXiv 1905.03696), whose sensitivities add up, too; here they are measured and not derived. Limits:
effects of two groups on each other are not seen; what is chosen by the sum must be measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from gpusq_onnx.calibration.image_bytes import BATCH
from gpusq_onnx.calibration.store import BatchStore
from gpusq_onnx.data.source import Source
from gpusq_onnx.data.subset import halves
from gpusq_onnx.graph import io
from gpusq_onnx.graph.model import Model
from gpusq_onnx.pipeline.schedule import CALIBRATING, SECOND_ORDER
from gpusq_onnx.progress import Progress
from gpusq_onnx.report.tuning import FormLoss, Group, Sensitivity
from gpusq_onnx.runtime.crew import ALONE, Crew
from gpusq_onnx.runtime.ort import Session
from gpusq_onnx.scratch import Scratch
from gpusq_onnx.tasks.kinds import image_shape
from gpusq_onnx.tuning import estimate
from gpusq_onnx.tuning.divergence import Divergence
from gpusq_onnx.tuning.groups import Groups
from gpusq_onnx.tuning.subject import Subject
from gpusq_onnx.tuning.treatments import DENSE, TREATMENTS
from gpusq_onnx.tuning.variants import Variants

_AT_ONCE = 6  # pairs that are measured before the estimates are made anew
_PAIR = 2.5  # runs of one image that an image takes for each pair: to calibrate with, and to measure on


def measure(
    subject: Subject, groups: Groups, source: Source, exact: int | None, progress: Progress, crew: Crew = ALONE
) -> Sensitivity:
    """Measure and estimate every group in every form that it can have.

    Args:
        source: the images: one half prunes and calibrates, the other is measured on, where they can be divided.
        exact: how many pairs of group and form are measured: half of them spread evenly, but one of each role, pruned
            and not, at least; then those that a search would take first. None: all.
        crew: the processes that share the measurements.
    """
    pairs, count = _pairs(groups), measurements(groups, exact)
    sample = list(range(len(pairs))) if count == len(pairs) else estimate.spread(pairs, count // 2)
    calibration, held = halves(source)
    variants = Variants(subject.model, groups, calibration, subject.options.seed)
    found, guesses, correlation = dict[int, float](), dict[int, float](), None
    errors = estimate.errors(subject, groups, calibration, held, progress) if len(sample) < len(pairs) else {}
    with Scratch() as folder:
        reference = Reference(subject.model, held, folder)
        total = -(-max(count, len(sample)) // crew.size)
        progress.start("measuring layers one by one", total, _PAIR * len(held) * total)

        def one(index: int) -> float:
            group, form = pairs[index]
            value = reference.divergence(variants.of(group, TREATMENTS[form]))
            progress.advance()
            return value

        waiting = list(sample)
        while waiting:
            found |= zip(waiting, crew.gathered([partial(one, index) for index in waiting]), strict=True)
            guesses = estimate.fill(pairs, errors, found) if errors else {}
            following = max(0, min(_AT_ONCE, count - len(found))) if errors else 0
            waiting = estimate.doubtful(pairs, guesses, found, following)
        progress.finish()
    if errors:
        correlation = estimate.left_out(pairs, errors, found, sample)
    losses = tuple(FormLoss(g.name, form, found.get(i), guesses.get(i)) for i, (g, form) in enumerate(pairs))
    return crew.agreed(lambda: Sensitivity(reference.measure, reference.images, losses, correlation))


def _pairs(groups: Groups) -> list[tuple[Group, str]]:
    return [(group, form) for group in groups.groups for form in group.operations if form != DENSE]


def measurements(groups: Groups, exact: int | None) -> int:
    """How many pairs of group and form `measure` measures, about."""
    pairs = len(_pairs(groups))
    return pairs if exact is None else min(exact, pairs)


def work(groups: Groups, source: Source, exact: int | None) -> float:
    """What `measure` costs, in runs of one image (`pipeline.schedule`)."""
    half = max(1, len(source) // 2)
    looking = SECOND_ORDER + CALIBRATING if measurements(groups, exact) < len(_pairs(groups)) else 0.0
    return half * (looking + 1 + _PAIR * measurements(groups, exact))


class Reference:
    """The dense model's outputs, batch by batch on disk, to which others are compared."""

    def __init__(self, model: Model, source: Source, folder: Path) -> None:
        self._source, self._folder, self._store = source, folder, BatchStore(folder)
        self._image = image_shape(spec.shape for spec in model.inputs())
        self.images, self.measure = 0, ""
        for number, (outputs, size) in enumerate(self._run(model)):
            self._store.write(number, outputs)
            self.images += size

    def divergence(self, model: Model) -> float:
        """How far a model's outputs are."""
        found = Divergence(self._image)
        for number, (outputs, _) in enumerate(self._run(model)):
            found.update(self._store.read_all(number), outputs)
        self.measure = found.measure
        return found.result()

    def _run(self, model: Model) -> Iterator[tuple[dict[str, NDArray[Any]], int]]:
        with Scratch(self._folder) as folder:
            io.write_tapped(model, folder / "model.onnx", [spec.name for spec in model.outputs()])
            session = Session(folder / "model.onnx", exact_qdq=True)
            for batch in self._source.batches(BATCH):
                yield batch.counting(session.run(batch.feed)), batch.size


def by_group(sensitivity: Sensitivity) -> dict[str, dict[str, float]]:
    """The losses of each group by form; dense costs nothing."""
    found: dict[str, dict[str, float]] = {}
    for loss in sensitivity.losses:
        found.setdefault(loss.group, {DENSE: 0.0})[loss.form] = max(0.0, loss.value)
    return found
