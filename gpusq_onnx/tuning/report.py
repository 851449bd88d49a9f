"""The reports of `plan --sensitivity` and `tune`: plain JSON values, and the same in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from shlex import join
from typing import Any

from gpusq_onnx.errors import GateFailed
from gpusq_onnx.marks import AUTHOR
from gpusq_onnx.report.preparation import given_words, line
from gpusq_onnx.report.sheet import Answer, Commands, Grid, Heading, Item, Part, markdown
from gpusq_onnx.report.tuning import (
    Goal,
    Group,
    JudgedPoint,
    Look,
    ModelFile,
    Point,
    ReasonedLayer,
    Recovery,
    Sensitivity,
    SensitivityDocument,
    SharedGroup,
    TuningDocument,
)
from gpusq_onnx.tuning.groups import Groups
from gpusq_onnx.tuning.treatments import DENSE, TREATMENTS
from gpusq_onnx.wording import worded


@dataclass(frozen=True)
class SensitivityReport:
    """What `sensitivity` found.

    Attributes:
        model, sha256: the file.
        groups: what is chosen together, with its operations in each form.
        found: what each group costs in each form.
        data: what the images are and how they became inputs (`data.remembered.Settled.describe`).
        warnings: sentences about the data.
        look: how it was made.
    """

    model: str
    sha256: str
    groups: Groups
    found: Sensitivity
    data: Mapping[str, Any]
    warnings: tuple[str, ...] = ()
    look: Look | None = None

    @property
    def document(self) -> SensitivityDocument:
        """What `--report` writes and the page reads."""
        total = self.groups.total
        groups = tuple(SharedGroup(**vars(g), share=g.operations[DENSE] / total) for g in self.groups.groups)
        model = ModelFile(self.model, self.sha256)
        return SensitivityDocument(
            tool=AUTHOR,
            model=model,
            operations=total,
            groups=groups,
            sensitivity=self.found,
            warnings=self.warnings,
            data=self.data,
            look=self.look,
        )

    @property
    def report(self) -> dict[str, Any]:
        """Plain JSON values: what `--report` writes."""
        return self.document.to_dict()

    def rows(self, most: int | None = None) -> tuple[list[str], list[list[str]]]:
        """The table: a row for each group, a column for each form; `~` before what is estimated.

        Args:
            most: of the groups, those that cost most, in their order; None: all.
        """
        forms = [n for n in TREATMENTS if n != DENSE and any(n in g.operations for g in self.groups.groups)]
        cells = {
            (loss.group, loss.form): f"{'' if loss.exact is not None else '~'}{loss.value:.2e}"
            for loss in self.found.losses
        }
        rows = [
            [g.name, f"{g.operations[DENSE] / self.groups.total:.1%}", *(cells.get((g.name, f), "-") for f in forms)]
            for g in self._costliest(most)
        ]
        return ["group", "operations", *forms], rows

    def _costliest(self, most: int | None) -> list[Group]:
        groups = list(self.groups.groups)
        if most is None or len(groups) <= most:
            return groups
        cost: dict[str, float] = {}
        for loss in self.found.losses:
            cost[loss.group] = max(cost.get(loss.group, 0.0), loss.value)
        kept = {group.name for group in sorted(groups, key=lambda group: -cost.get(group.name, 0.0))[:most]}
        return [group for group in groups if group.name in kept]

    def notes(self) -> list[str]:
        """What the numbers are."""
        exact = sum(loss.exact is not None for loss in self.found.losses)
        said = [f"{self.found.measure}, over {self.found.images} images, each group changed alone"]
        if exact < len(self.found.losses):
            ranks = self.found.rank_correlation
            how = "not known" if ranks is None else f"{ranks:.2f}"
            said.append(
                f"{exact} of {len(self.found.losses)} measured, ~ estimated; rank correlation of measured ones with "
                f"their estimates, each left out in turn: {how}"
            )
        return [*said, *([prepared] if (prepared := line(self.data)) else [])]

    def sheet(self, most: int | None = None) -> list[Part]:
        """In words; the arguments are those of `rows`."""
        header, rows = self.rows(most)
        total = len(self.groups.groups)
        notes = self.notes() + [f"warning: {text}" for text in self.warnings]
        notes += [f"the {len(rows)} of {total} groups that cost most; --full has all"] if len(rows) < total else []
        return [
            Heading(f"{self.model}: what each group of layers costs alone"),
            *map(Item, notes),
            Grid(header, rows),
            Commands("next", [self._next()]),
        ]

    def _next(self) -> str:
        words = given_words(self.data, scores=True)
        return join(["gpusq-onnx", "tune", "--budget", "agreement>=0.97", *words, self.model])

    def __str__(self) -> str:
        return markdown(self.sheet())


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What `tune` found.

    Attributes:
        sensitivity: of the model, which the search began with.
        asked: the budget, or the share of operations, in words.
        chosen: the configuration that was chosen; None: the budget is missed.
        pipeline: the chosen passes as one text; "" where the budget is missed.
        recipe: the same as TOML.
        layers: what each group of layers gets, and why.
        points: everything that was measured, in order.
        calibrated, measured: images that the passes calibrated with, and those that configurations were measured on.
        failure: why the budget is missed; "" where it is met.
        goal: as it was given.
        recovery: what training was found to leave; None: nothing was trained.
    """

    sensitivity: SensitivityReport
    asked: str
    chosen: Point | None
    pipeline: str
    recipe: str
    layers: tuple[ReasonedLayer, ...]
    points: tuple[Point, ...]
    calibrated: int
    measured: int
    failure: str
    goal: Goal
    recovery: Recovery | None = None

    @property
    def document(self) -> TuningDocument:
        """What `--report` writes and the page reads."""
        best = self.pareto
        return TuningDocument(
            **vars(self.sensitivity.document),
            asked=self.asked,
            met=self.chosen is not None,
            failure=self.failure,
            chosen=self.chosen,
            pipeline=self.pipeline,
            layers=self.layers,
            points=tuple(JudgedPoint(**vars(point), pareto=point in best) for point in self.points),
            calibrated=self.calibrated,
            measured=self.measured,
            goal=self.goal,
            recovery=self.recovery,
        )

    @property
    def report(self) -> dict[str, Any]:
        """Plain JSON values: what `--report` writes."""
        return self.document.to_dict()

    @property
    def pareto(self) -> list[Point]:
        """The points that no other beats in both cost and divergence, cheapest first."""
        ordered = sorted(self.points, key=lambda point: (point.of(self.goal.cost), point.values["kl"]))
        kept: list[Point] = []
        for point in ordered:
            if not kept or point.values["kl"] < kept[-1].values["kl"]:
                kept.append(point)
        return kept

    @worded
    def require(self) -> None:
        """Raise GateFailed where the budget is missed."""
        if self.chosen is None:
            hint = "a looser budget"
            if self.goal.budget is not None:
                hint += ", more images to calibrate with, or training: --finetune EPOCHS"
            raise GateFailed("no configuration meets the budget", where=self.asked, found=self.failure, hint=hint)

    def sheet(self, *, full: bool = True) -> list[Part]:
        """In words; without `full` a line for each form in place of one for each group of layers."""
        parts: list[Part] = [Heading(f"{self.sensitivity.model}: a form for each layer")]
        if self.chosen is None:
            parts.append(Answer(f"{self.asked}: NOT MET: {self.failure}"))
        else:
            parts.append(Answer(f"{self.asked}: met"))
            operations, packed = self.chosen.shares
            size = self.chosen.of("packed") * self.sensitivity.groups.packed
            shares = f"{operations} of the dense bit operations, {packed} of the packed bytes: {size:,.0f}"
            parts.append(Item(f"chosen: {self.chosen.name}, {shares}"))
            parts += map(Item, self._said(self.chosen.values))
            parts.append(Item(f"passes: {self.pipeline}"))
        parts.append(Item(f"calibrated with {self.calibrated} images, measured on {self.measured} others"))
        parts += [] if self.recovery is None else [Item(str(self.recovery))]
        parts += map(Item, self.sensitivity.notes())
        parts += [Item(f"warning: {text}") for text in self.sensitivity.warnings]
        document, recipe = self.document, self.goal.recipe
        parts += [Heading("Measured", 2), Grid(*document.configurations())]
        if self.layers:
            parts += [Heading("Layers", 2), Grid(*document.reasons()) if full else self._forms()]
        return parts + ([Commands("next", [self._next(recipe)])] if recipe and self.chosen else [])

    def _next(self, recipe: str) -> str:
        data = self.sensitivity.data
        options = {**data["options"], "calibrate": self.calibrated}
        words = given_words({**data, "options": options, "given": [*data["given"], "calibrate", "hold_out"]})
        return join(["gpusq-onnx", "apply", "--recipe", recipe, *words, self.sensitivity.model])

    def __str__(self) -> str:
        return markdown(self.sheet())

    def _forms(self) -> Grid:
        forms = dict.fromkeys(layer.form for layer in self.layers)
        of = {form: [layer for layer in self.layers if layer.form == form] for form in forms}
        rows = [[form, str(len(of[form])), f"{sum(layer.share for layer in of[form]):.1%}"] for form in forms]
        return Grid(["form", "groups", self.goal.cost], rows)

    def _said(self, values: Mapping[str, float]) -> list[str]:
        found = [f"{name} {value:.4g}" for name, value in values.items()]
        if "agreement" in values:
            low, high = interval(values["agreement"], self.measured)
            found.append(
                f"agreement on other images: {low:.1%} to {high:.1%}, with 95 % certainty from {self.measured}"
            )
        return found


def interval(share: float, count: int) -> tuple[float, float]:
    """Where the share of all lies, with 95 % certainty, that was found to be `share` of `count` (Wilson, 1927).

    >>> [round(x, 3) for x in (*interval(1.0, 64), *interval(0.95, 256))]
    [0.943, 1.0, 0.916, 0.971]
    """
    z = 1.96**2 / count
    middle = (share + z / 2) / (1 + z)
    half = sqrt(z * (share * (1 - share) + z / 4)) / (1 + z)
    return max(0.0, middle - half), min(1.0, middle + half)
