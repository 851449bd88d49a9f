"""What `plan --sensitivity` and `tune` find, as data: what their JSON holds, written by `tuning` and read by the page.

    SensitivityDocument    the model, its groups of layers, what each form of each group costs
    TuningDocument         that, and what a search measured and chose

Operations are bit operations for one image (`tuning.groups`), losses are in the unit of `Sensitivity.measure`, and a
share is of the whole dense model's operations, but where it says packed bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any, Literal

Cost = Literal["operations", "packed"]
COSTS: Mapping[Cost, str] = MappingProxyType({"operations": "bit operations", "packed": "packed bytes"})
"""What a search saves, in words."""


@dataclass(frozen=True)
class Group:
    """Layers that get one form.

    Attributes:
        name: for people, unique in the model.
        role: what is alike in other blocks: "fc1".
        depth: its place in the node list.
        sites: names of its weights; empty for an attention core.
        attention: the number of the attention core; None for layers.
        operations: bit operations for one image, by the names of the forms that it can have.
        packed: packed bytes of its weights, by the same; empty in reports of earlier builds.
    """

    name: str
    role: str
    depth: int
    sites: tuple[str, ...]
    attention: int | None
    operations: Mapping[str, float]
    packed: Mapping[str, float] = field(default_factory=dict, kw_only=True)

    def costs(self, cost: Cost) -> Mapping[str, float]:
        """One of both."""
        return self.operations if cost == "operations" else self.packed


@dataclass(frozen=True)
class FormLoss:
    """What a form of a group costs, in the unit of `Sensitivity.measure`.

    Attributes:
        group, form: their names.
        exact: measured; None: it was not.
        estimated: by `tuning.estimate`; None: not made.
    """

    group: str
    form: str
    exact: float | None
    estimated: float | None

    @property
    def value(self) -> float:
        """The measured one where there is one."""
        found = self.exact if self.exact is not None else self.estimated
        assert found is not None
        return found


@dataclass(frozen=True)
class Sensitivity:
    """All groups in all forms.

    Attributes:
        measure: what the numbers are, in words.
        images: how many they are means of.
        losses: in graph order.
        rank_correlation: Spearman's, between what was measured and what would have been estimated without that
            measurement; None where nothing is estimated, or fewer than three pairs were measured.
    """

    measure: str
    images: int
    losses: tuple[FormLoss, ...]
    rank_correlation: float | None


@dataclass(frozen=True)
class Point:
    """A configuration that was measured.

    Attributes:
        name: how it came about.
        choice: the form of each group.
        share: of the dense model's bit operations.
        estimate: the sum of its groups' losses.
        values: what was measured, by metric: see `tuning.budget.METRICS`.
        packed: of the dense model's packed bytes, as it was made; None in reports of earlier builds.
        trained: whether it was trained; `estimate` is of the losses that are expected then.
    """

    name: str
    choice: Mapping[str, str]
    share: float
    estimate: float
    values: Mapping[str, float]
    packed: float | None = field(default=None, kw_only=True)
    trained: bool = field(default=False, kw_only=True)

    def of(self, cost: Cost) -> float:
        """Its share of the dense model's cost; of its operations, where the report is of an earlier build."""
        return self.share if cost == "operations" or self.packed is None else self.packed

    @property
    def shares(self) -> tuple[str, str]:
        """Both shares, for people."""
        return f"{self.share:.1%}", "-" if self.packed is None else f"{self.packed:.1%}"


@dataclass(frozen=True)
class Recovery:
    """What training leaves of the divergence, as factors.

    Attributes:
        pruned: in groups that are pruned.
        others: in all others.
    """

    pruned: float
    others: float

    def of(self, *, pruned: bool) -> float:
        """One of both."""
        return self.pruned if pruned else self.others

    def __str__(self) -> str:
        return f"training left {self.pruned:.0%} of the loss of pruned groups, {self.others:.0%} of that of others"


@dataclass(frozen=True)
class ReasonedLayer:
    """A group, or one weight or attention core outside all groups.

    Attributes:
        name: the group's, or the weight's.
        weights: names of the initializers.
        form: what it gets.
        share: of the dense model's bit operations that its form leaves; of its packed bytes, where those are saved.
        loss: of the form alone.
        reason: one sentence.
    """

    name: str
    weights: tuple[str, ...]
    form: str
    share: float
    loss: float
    reason: str


@dataclass(frozen=True)
class SharedGroup(Group):
    """A group, and its share of the dense model's operations.

    Attributes:
        share: 0 to 1.
    """

    share: float


@dataclass(frozen=True)
class JudgedPoint(Point):
    """A configuration that was measured.

    Attributes:
        pareto: no other that was measured beats it in both operations and divergence.
    """

    pareto: bool


@dataclass(frozen=True)
class ModelFile:
    """The model.

    Attributes:
        path: as the caller named it.
        sha256: in hex.
    """

    path: str
    sha256: str


@dataclass(frozen=True)
class Look:
    """How the layers were looked at.

    Attributes:
        target: a row of `pipeline.targets`, or none.
        forms: those that were tried.
        images: how many each group was looked at with.
        exact: pairs of group and form that were measured at most; None: all.
    """

    target: str | None
    forms: tuple[str, ...]
    images: int
    exact: int | None


@dataclass(frozen=True)
class Goal:
    """What was chosen for: arguments of `workflows.tune`.

    Attributes:
        budget: the bound on a metric, `agreement>=0.97`.
        at_most: the share of the bit operations.
        measurements: configurations to measure.
        recipe: where it is written; None: nowhere.
        packed_size: the size to keep to.
        finetune, finetune_steps: how long what is chosen is trained; None: not at all.
        rounds: of training; 0: none.
    """

    budget: str | None
    at_most: str | None
    measurements: int
    recipe: str | None
    packed_size: str | None = field(default=None, kw_only=True)
    finetune: int | None = field(default=None, kw_only=True)
    finetune_steps: int | None = field(default=None, kw_only=True)
    rounds: int = field(default=0, kw_only=True)

    @property
    def cost(self) -> Cost:
        """What was saved."""
        return "operations" if self.packed_size is None else "packed"


@dataclass(frozen=True)
class SensitivityDocument:
    """What `plan --sensitivity --report` writes.

    Attributes:
        tool: name and version.
        operations: of the whole dense model.
        warnings: sentences about the data.
        data: what the images are and how they became inputs (`data.remembered.Settled.describe`).
        look: how it was made. Reports of earlier builds have neither.
    """

    tool: str
    model: ModelFile
    operations: float
    groups: tuple[SharedGroup, ...]
    sensitivity: Sensitivity
    warnings: tuple[str, ...]
    data: Mapping[str, Any] | None = field(default=None, kw_only=True)
    look: Look | None = field(default=None, kw_only=True)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class TuningDocument(SensitivityDocument):
    """What `tune --report` writes.

    Attributes:
        asked: the budget, or the share of operations, in words.
        met: whether a configuration was found.
        failure: why none was; "" where one was.
        chosen: the configuration; None: the budget is missed.
        pipeline: its passes as one text; "" where the budget is missed.
        layers: what each group of layers gets, and why.
        points: everything that was measured, in order.
        calibrated, measured: images that the passes calibrated with, and those that configurations were measured on.
        goal: as it was given; None in reports of earlier builds.
        recovery: what training was found to leave; None: nothing was trained.
    """

    asked: str
    met: bool
    failure: str
    chosen: Point | None
    pipeline: str
    layers: tuple[ReasonedLayer, ...]
    points: tuple[JudgedPoint, ...]
    calibrated: int
    measured: int
    goal: Goal | None = field(default=None, kw_only=True)
    recovery: Recovery | None = field(default=None, kw_only=True)

    @property
    def cost(self) -> Cost:
        """What was saved."""
        return self.goal.cost if self.goal else "operations"

    def configurations(self) -> tuple[list[str], list[list[str]]]:
        """Everything that was measured as a table, dearest first: its header and its rows."""
        metrics = list(self.points[0].values) if self.points else []
        chosen = self.chosen.name if self.chosen else ""
        rows = [
            [
                point.name,
                *point.shares,
                f"{point.estimate:.2e}",
                *(f"{point.values[metric]:.4g}" for metric in metrics),
                "chosen" if point.name == chosen else "Pareto" if point.pareto else "",
            ]
            for point in sorted(self.points, key=lambda point: -point.of(self.cost))
        ]
        return ["configuration", "operations", "packed", "sum of losses", *metrics, ""], rows

    def reasons(self) -> tuple[list[str], list[list[str]]]:
        """What each group of layers gets as a table: its header and its rows."""
        rows = [[layer.name, layer.form, f"{layer.share:.2%}", layer.reason] for layer in self.layers]
        return ["layers", "form", self.cost, "why"], rows
