"""The search goes round: what was chosen is trained, which shows what that brings back, and chosen again.

    loss of a form once trained = its loss untrained * what training leaves of it
    what training leaves        one factor for pruned forms, one for the others: least squares over the configurations
                                that were trained, of the relative error of sum(factor * loss) against the divergence
                                measured, with a weak pull to `PRIOR`

With these losses the road is another: pruning, which training repairs best, comes earlier. A round trains one
configuration of it: under a budget the cheapest that is expected to meet it, else the nearest at the cost. A budget of
another metric than KL is one of KL, too: between the largest divergence that met it and the smallest that did not.

Limits: two factors for all layers; rounds are few, as each of them trains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, sqrt

import numpy as np

from gpusq_onnx.report.tuning import Point, Recovery
from gpusq_onnx.tuning.budget import Budget
from gpusq_onnx.tuning.rounds import Tuner
from gpusq_onnx.tuning.treatments import TREATMENTS

PRIOR = Recovery(0.6, 1.0)  # a guess, for the first round; what was found once: docs/benchmarks.md
_PULL = 0.03  # its weight, beside 1 for each configuration
_LEAST = 0.01  # of a factor, in parts of the prior's


class TrainingRounds:
    """Trains, and chooses again.

    Args:
        tuner: holds what was measured so far, and measures.
        aim: the budget, or the share of the cost that is left.
        losses: of each group, by form, untrained.

    Attributes:
        recovery: what training was found to leave; None: nothing was trained.
    """

    def __init__(self, tuner: Tuner, aim: Budget | float, losses: Mapping[str, Mapping[str, float]]) -> None:
        self._tuner, self._aim, self._losses = tuner, aim, losses
        self.recovery: Recovery | None = None

    def go(self, rounds: int) -> None:
        """Train at most so many configurations; fewer where nothing is left to try."""
        for number in range(1, rounds + 1):
            losses = self._once_trained()
            choice = self._next(losses)
            if choice is None:
                return
            self._tuner.point(f"round {number}, trained", choice, trained=losses)
            self.recovery = fitted([(self._sums(point.choice), point.values["kl"]) for point in self._trained])

    @property
    def _trained(self) -> list[Point]:
        return [point for point in self._tuner.points if point.trained]

    def _once_trained(self) -> dict[str, dict[str, float]]:
        left = self.recovery or PRIOR
        return {
            group: {form: loss * left.of(pruned=_pruned(form)) for form, loss in forms.items()}
            for group, forms in self._losses.items()
        }

    def _next(self, losses: Mapping[str, Mapping[str, float]]) -> Mapping[str, str] | None:
        """What to train; None: nothing that could be better than what is there."""
        tuner, tried = self._tuner, [point.choice for point in self._trained]
        road = [choice for choice in tuner.stops(losses) if choice not in tried and tuner.share(choice) < 1]
        expected = {id(choice): sum(losses[g][form] for g, form in choice.items()) for choice in road}
        if isinstance(self._aim, Budget):
            found = tuner.best(self._aim)
            road = [choice for choice in road if found is None or tuner.share(choice) < found.of(tuner.cost)]
            bound = bound_of(self._aim, tuner.points)
            meeting = [choice for choice in road if expected[id(choice)] <= bound]
            if meeting:
                return min(meeting, key=tuner.share)
        else:
            unplanned = max((tuner.unplanned(point) for point in tuner.points), default=0.0)
            road = [choice for choice in road if tuner.share(choice) + unplanned <= self._aim]
        return min(road, key=lambda choice: expected[id(choice)], default=None)

    def _sums(self, choice: Mapping[str, str]) -> tuple[float, float]:
        """The untrained losses of a choice: of pruned groups, and of the others."""
        pruned = sum(self._losses[g][form] for g, form in choice.items() if _pruned(form))
        return pruned, sum(self._losses[g][form] for g, form in choice.items()) - pruned


def fitted(trained: Sequence[tuple[tuple[float, float], float]]) -> Recovery:
    """What training leaves, from the losses (pruned, others) and the divergence of what was trained.

    >>> found = fitted([((2.0, 0.1), 0.28), ((1.0, 0.1), 0.18)])
    >>> round(found.pruned, 1), round(found.others, 1)
    (0.1, 0.8)
    """
    prior = PRIOR.pruned, PRIOR.others
    rows = [[loss / max(divergence, 1e-12) for loss in sums] for sums, divergence in trained]
    pulls = (sqrt(_PULL) * np.diag([1 / factor for factor in prior])).tolist()
    wanted = [1.0] * len(rows) + [sqrt(_PULL)] * 2
    found = np.linalg.lstsq(np.array([*rows, *pulls]), np.array(wanted), rcond=None)[0]
    return Recovery(*(max(_LEAST * factor, float(x)) for factor, x in zip(prior, found, strict=True)))


def bound_of(budget: Budget, points: Sequence[Point]) -> float:
    """The divergence up to which a configuration is expected to meet a budget."""
    if budget.metric.name == "kl":
        return budget.bound
    met = max((point.values["kl"] for point in points if budget.met_by(point.values)), default=0.0)
    missed = min((p.values["kl"] for p in points if not budget.met_by(p.values) and p.values["kl"] > met), default=inf)
    return sqrt(met * missed) if met else missed / 2


def _pruned(form: str) -> bool:
    return TREATMENTS[form].pattern is not None
