"""Which form each group gets: the convex road from the dense model to the cheapest one, by losses that add up.

A group's forms are points (operations, loss). Only those on the lower convex hull are stops; going from one stop to the
next saves operations at a price, loss per operation. The road takes all groups' moves in the order of their price: at
each point no other choice has both a smaller sum of losses and fewer operations, but for the width of one move. That is
the greedy solution of the multiple-choice knapsack problem (Sinha and Zoltners, 1979).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

Points = Mapping[str, tuple[float, float]]
"""By form: operations, and the loss when this group alone has the form."""


@dataclass(frozen=True)
class Move:
    """One group from one form to the next cheaper one; `price` is loss per operation saved."""

    group: str
    before: str
    after: str
    price: float


def moves(groups: Mapping[str, Points]) -> list[Move]:
    """All moves from each group's dearest form on, whose loss is 0, in the order in which the road takes them."""
    found = []
    for name, points in groups.items():
        stops, first = hull(points), max(points, key=lambda form: points[form][0])
        stops = stops if stops[0] == first else [first, *stops]  # a form that costs nothing: a move at price 0
        for before, after in pairwise(stops):
            saved = points[before][0] - points[after][0]
            found.append(Move(name, before, after, (points[after][1] - points[before][1]) / saved))
    return sorted(found, key=lambda move: move.price)  # a group's own moves are in this order already


def hull(points: Points) -> list[str]:
    """The forms on the lower convex hull, from the least loss to the fewest operations.

    >>> hull({"dense": (16, 0), "a": (8, 1), "b": (4, 1), "c": (2, 9)})
    ['dense', 'b', 'c']
    """
    ordered = sorted(points, key=lambda form: (points[form][1], points[form][0]))
    kept: list[str] = []
    for form in ordered:
        if kept and points[form][0] >= points[kept[-1]][0]:
            continue  # neither cheaper nor better
        while len(kept) > 1 and _price(points, kept[-2], kept[-1]) >= _price(points, kept[-2], form):
            kept.pop()
        kept.append(form)
    return kept


def along(start: Mapping[str, str], road: Sequence[Move], count: int) -> dict[str, str]:
    """The forms of all groups after the first `count` moves."""
    return {**start, **{move.group: move.after for move in road[:count]}}


def _price(points: Points, before: str, after: str) -> float:
    return (points[after][1] - points[before][1]) / (points[before][0] - points[after][0])
