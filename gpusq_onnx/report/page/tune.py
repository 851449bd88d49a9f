"""What `plan --sensitivity` and `tune` report, as sections of the page: what each group costs, and the Pareto curve."""

from __future__ import annotations

from collections.abc import Iterator

from gpusq_onnx.report.page import pictures
from gpusq_onnx.report.page.blocks import Block, FactList, Note, Picture, Section, Table
from gpusq_onnx.report.tuning import FormLoss, SensitivityDocument, TuningDocument

_CHART = 64  # groups in a picture


def of_tune(document: SensitivityDocument) -> Iterator[Section]:
    """Sensitivity, and where a search was made, what it measured and chose."""
    if isinstance(document, TuningDocument):
        yield Section("Choice", list(_choice(document)))
    yield Section("Sensitivity", list(_sensitivity(document)))


def _choice(document: TuningDocument) -> Iterator[Block]:
    points, chosen = document.points, document.chosen
    name = chosen.name if chosen else ""
    rows = [("asked", document.asked), ("passes", document.pipeline or "none")]
    images = f"calibrated with {document.calibrated}, measured on {document.measured} others"
    yield FactList([*rows, ("images", images)])
    if document.recovery is not None:
        yield Note(str(document.recovery))
    if document.failure:
        yield Note(document.failure, "bad")
    if not points:
        return
    caption = "What was measured: red the chosen one, the line joins those that no other beats"
    caption += "; triangles were trained" if any(point.trained for point in points) else ""
    yield Picture(pictures.pareto(points, name, document.cost), caption)
    header, cells = document.configurations()
    yield Table("Configurations", header, cells, range(1, len(header) - 1))
    yield Table("What each group gets, and why", *document.reasons(), (2,), folded=True)


def _sensitivity(document: SensitivityDocument) -> Iterator[Block]:
    found, groups = document.sensitivity, document.groups
    losses = {(loss.group, loss.form): loss for loss in found.losses}
    forms = list(dict.fromkeys(form for _, form in losses))
    yield Note(f"{found.measure}, over {found.images} images, each group changed alone")

    def value(group: str, form: str) -> float | None:
        loss = losses.get((group, form))
        return None if loss is None else loss.value

    ranked = sorted(groups, key=lambda group: -max(value(group.name, form) or 0.0 for form in forms))[:_CHART]
    shown = [group.name for group in groups if group in ranked]
    by_form = {form: [value(name, form) for name in shown] for form in forms}
    yield Picture(pictures.sensitivities(shown, by_form), "What each group of layers costs in each form, changed alone")
    cells = [
        [group.name, f"{group.share:.1%}", *(_cell(losses.get((group.name, form))) for form in forms)]
        for group in groups
    ]
    header = ["group", "operations", *forms]
    yield Table("Every group; ~ before what is estimated", header, cells, range(1, len(header)), folded=True)


def _cell(loss: FormLoss | None) -> str:
    return "-" if loss is None else f"{'' if loss.exact is not None else '~'}{loss.value:.2e}"
