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

from gpusq_onnx.report.tuning import Point
from gpusq_onnx.tuning.budget import Budget
from gpusq_onnx.tuning.configuration import settled, uniform
from gpusq_onnx.tuning.groups import Groups
from gpusq_onnx.tuning.search import along, moves
from gpusq_onnx.tuning.treatments import DENSE, Treatment

Measure = Callable[[Mapping[str, str]], Mapping[str, float]]


class Tuner:
    """One search.

    Args:
        losses: of each group, by form; dense 0.
        measure: carries a choice out and gives its values.
        most: configurations that are measured at most, the uniform ones and their comparisons not counted.
    """

    def __init__(self, groups: Groups, losses: Mapping[str, Mapping[str, float]], measure: Measure, most: int) -> None:
        self._groups, self._losses, self._measure, self._left = groups, losses, measure, most
        self.road = moves({g.name: {f: (o, losses[g.name][f]) for f, o in g.operations.items()} for g in groups.groups})
        self._dense = {group.name: DENSE for group in groups.groups}
        self.points: list[Point] = []

    def uniform(self, treatments: Sequence[Treatment]) -> None:
        """Measure one form for all, and the road at the same cost."""
        for treatment in (t for t in treatments if t.name != DENSE):
            whole = self.point(f"uniform {treatment.name}", uniform(self._groups, treatment))
            count = self._count(whole.share)
            if count is not None:
                self.point(f"search at the cost of uniform {treatment.name}", along(self._dense, self.road, count))

    def under(self, budget: Budget) -> Point | None:
        """The cheapest configuration measured that meets the budget; None: none does."""
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
        meeting = [point for point in self.points if budget.met_by(point.values) and point.share < 1]
        return min(meeting, key=lambda point: (point.share, point.values["kl"]), default=None)

    def at_most(self, share: float) -> Point | None:
        """The configuration of least measured divergence that costs no more than `share`; None: none is as cheap."""
        count = self._count(share)
        if count is not None:
            self._spent(f"search, {count} moves", along(self._dense, self.road, count))
        cheap = [point for point in self.points if point.share <= share]
        return min(cheap, key=lambda point: (point.values["kl"], point.share), default=None)

    def least(self) -> float:
        """The share of operations that the cheapest configuration costs."""
        return self._share(along(self._dense, self.road, len(self.road)))

    def point(self, name: str, choice: Mapping[str, str]) -> Point:
        """Measure a configuration, or give what was measured of it."""
        choice = settled(self._groups, choice)
        known = next((point for point in self.points if point.choice == choice), None)
        if known is not None:
            return known
        estimate = sum(self._losses[group][form] for group, form in choice.items())
        made = Point(name, choice, self._share(choice), estimate, dict(self._measure(choice)))
        self.points.append(made)
        return made

    def _spent(self, name: str, choice: Mapping[str, str]) -> Point:
        known = len(self.points)
        point = self.point(name, choice)
        self._left -= len(self.points) - known
        return point

    def _share(self, choice: Mapping[str, str]) -> float:
        return self._groups.share(settled(self._groups, choice))

    def _count(self, share: float) -> int | None:
        """The fewest moves that lead to this share; None: the road does not."""
        counts = range(len(self.road) + 1)
        return next((c for c in counts if self._share(along(self._dense, self.road, c)) <= share), None)
