"""Search by estimates, decide by measurements: the cheapest configuration that meets a budget, or the best of a cost.

    1. one form for all is measured: INT8, 2:4 and INT8, ...
    2. along the road of `search` the number of moves is bisected, each configuration measured; a step back undoes the
       moves that cost most for what they save
    3. what follows the first move that fails is tried without its group, one move at a time
    4. at the cost of each uniform configuration, the road's own is measured, so that both can be compared

What is given back is the best of everything measured, so no uniform choice that was measured is better.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gpusq_onnx.report.tuning import Cost, Point
from gpusq_onnx.tuning.budget import Budget
from gpusq_onnx.tuning.configuration import settled, uniform
from gpusq_onnx.tuning.groups import Groups
from gpusq_onnx.tuning.search import Move, along, moves
from gpusq_onnx.tuning.treatments import DENSE, Treatment


@dataclass(frozen=True)
class Measured:
    """What a configuration that was made has: values by metric, and its share of the dense model's packed bytes."""

    values: Mapping[str, float]
    packed: float


Measure = Callable[[Mapping[str, str], bool], Measured]
"""Of a settled choice, trained or not."""


class Tuner:
    """One search.

    Args:
        losses: of each group, by form; dense 0.
        measure: carries a choice out and gives its values.
        most: configurations that are measured at most, the uniform ones and their comparisons not counted.
        cost: what is saved.
    """

    def __init__(
        self,
        groups: Groups,
        losses: Mapping[str, Mapping[str, float]],
        measure: Measure,
        most: int,
        cost: Cost = "operations",
    ) -> None:
        self._groups, self._losses, self._measure, self._left, self.cost = groups, losses, measure, most, cost
        self.road = self._road(losses)
        self._dense = {group.name: DENSE for group in groups.groups}
        self.points: list[Point] = []

    def uniform(self, treatments: Sequence[Treatment]) -> None:
        """Measure one form for all, and the road at the same cost."""
        for treatment in (t for t in treatments if t.name != DENSE):
            whole = self.point(f"uniform {treatment.name}", uniform(self._groups, treatment))
            count = self._count(self.share(whole.choice))
            if count is not None:
                self.point(f"search at the cost of uniform {treatment.name}", along(self._dense, self.road, count))

    def toward(self, aim: Budget | float) -> Point | None:
        """Search, and give the best: see there."""
        if isinstance(aim, Budget):
            self._under(aim)
        else:
            self._at_most(aim)
        return self.best(aim)

    def best(self, aim: Budget | float) -> Point | None:
        """Of everything measured, the cheapest that meets a budget, or the nearest to the dense model at a cost.

        Args:
            aim: a budget, or the greatest share of the cost.

        Returns:
            None where no configuration meets the budget, or none is as cheap.
        """
        if isinstance(aim, Budget):
            meeting = [point for point in self.points if aim.met_by(point.values) and point.of(self.cost) < 1]
            return min(meeting, key=lambda point: (point.of(self.cost), point.values["kl"]), default=None)
        cheap = [point for point in self.points if point.of(self.cost) <= aim]
        return min(cheap, key=lambda point: (point.values["kl"], point.of(self.cost)), default=None)

    def _under(self, budget: Budget) -> None:
        good, bad = 0, len(self.road) + 1
        while bad - good > 1 and self._left:
            middle = (good + bad) // 2
            met = budget.met_by(self._spent(f"search, {middle} moves", along(self._dense, self.road, middle)).values)
            good, bad = (middle, bad) if met else (good, middle)
        choice = along(self._dense, self.road, good)
        blocked = {move.group for move in self.road[good : good + 1]}
        for move in self.road[good + 1 :]:
            if not self._left:
                break
            if move.group not in blocked:
                tried = self._spent(f"search, then {move.group}", {**choice, move.group: move.after})
                if budget.met_by(tried.values):
                    choice = dict(tried.choice)
                else:
                    blocked.add(move.group)

    def _at_most(self, share: float) -> None:
        count = self._count(share)
        while count is not None and self._left:
            made = self._spent(f"search, {count} moves", along(self._dense, self.road, count))
            if made.of(self.cost) <= share:
                break
            further = self._count(share - self.unplanned(made))
            count = None if further is None or count == len(self.road) else max(further, count + 1)

    def least(self) -> float:
        """The share of the cost that the cheapest configuration has, as far as is known."""
        planned = self.share(along(self._dense, self.road, len(self.road)))
        return planned + max((self.unplanned(point) for point in self.points), default=0.0)

    def stops(self, losses: Mapping[str, Mapping[str, float]]) -> list[dict[str, str]]:
        """The settled choices along the road of other losses."""
        road = self._road(losses)
        return [settled(self._groups, along(self._dense, road, count)) for count in range(len(road) + 1)]

    def point(
        self, name: str, choice: Mapping[str, str], *, trained: Mapping[str, Mapping[str, float]] | None = None
    ) -> Point:
        """Measure a configuration, or give what was measured of it.

        Args:
            trained: train it first; the losses that are expected then.
        """
        choice, once = settled(self._groups, choice), trained is not None
        known = next((point for point in self.points if point.choice == choice and point.trained == once), None)
        if known is not None:
            return known
        losses = self._losses if trained is None else trained
        estimate = sum(losses[group][form] for group, form in choice.items())
        measured = self._measure(choice, once)
        share = self._groups.share(choice)
        made = Point(name, choice, share, estimate, dict(measured.values), packed=measured.packed, trained=once)
        self.points.append(made)
        return made

    def _spent(self, name: str, choice: Mapping[str, str]) -> Point:
        known = len(self.points)
        point = self.point(name, choice)
        self._left -= len(self.points) - known
        return point

    def unplanned(self, point: Point) -> float:
        """The share that no plan has: packed bytes of scales and of nodes that passes write; no operations."""
        return point.of(self.cost) - self.share(point.choice)

    def share(self, choice: Mapping[str, str]) -> float:
        """The share of the dense model's cost that a choice is planned to have."""
        return self._groups.share(settled(self._groups, choice), self.cost)

    def _road(self, losses: Mapping[str, Mapping[str, float]]) -> list[Move]:
        costs = {group.name: group.costs(self.cost) for group in self._groups.groups}
        return moves({name: {f: (c, losses[name][f]) for f, c in own.items()} for name, own in costs.items()})

    def _count(self, share: float) -> int | None:
        """The fewest moves that lead to this share; None: the road does not."""
        counts = range(len(self.road) + 1)
        return next((c for c in counts if self.share(along(self._dense, self.road, c)) <= share), None)
