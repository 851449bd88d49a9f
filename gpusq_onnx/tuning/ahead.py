"""Several processes measure what a search may want, before it wants it; the search finds what it finds with one.

The search runs on what is known. A configuration that it wants and that is not known is noted, and the search goes on
as if that met the aim, and as if it did not, until as many are noted as there are processes. All are measured at once,
each by another process, and the search begins anew, until nothing is missing. What the search did not want in the end
is no part of its result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import inf
from typing import TypeVar

from gpusq_onnx.runtime.crew import Crew
from gpusq_onnx.tuning.budget import Budget
from gpusq_onnx.tuning.rounds import Measure, Measured

T = TypeVar("T")
Choice = Mapping[str, str]
Key = tuple[tuple[str, str], ...]


class _MissingError(Exception):
    """The search wants a configuration that is not known."""

    def __init__(self, choice: Choice) -> None:
        super().__init__()
        self.choice = choice


def searched(search: Callable[[Measure], T], measure: Measure, aim: Budget | float, crew: Crew) -> T:
    """The result of a search that measures untrained configurations, the processes of `crew` working together.

    Args:
        search: gives the same for the same measurements; it is run many times. What it gives may go on to measure
            trained configurations, which all processes make together.
        measure: takes long.
        aim: the budget that a configuration may meet, or a cost.
    """
    known: dict[Key, Measured] = {}

    def run(supposed: Sequence[bool]) -> tuple[T | None, Choice]:
        """What the search gives, or the configuration that it misses after so many suppositions."""
        waiting = iter(supposed)

        def answer(choice: Choice, trained: bool) -> Measured:
            if trained:
                return measure(choice, True)
            found = known.get(_key(choice))
            if found is None:
                met = next(waiting, None)
                if met is None:
                    raise _MissingError(choice)
                found = _supposed(aim, met)
            return found

        try:
            return search(answer), {}
        except _MissingError as missing:
            return None, missing.choice

    while True:
        found, _ = run(())
        if found is not None:
            return found
        wanted = _wanted(lambda supposed: run(supposed)[1], crew.size)
        made = crew.gathered([partial(measure, choice, False) for choice in wanted])
        known.update(zip(map(_key, wanted), made, strict=True))


def _wanted(missing: Callable[[Sequence[bool]], Choice], most: int) -> list[Choice]:
    """At most so many configurations that the search may want next, the surest first.

    Args:
        missing: the one after these suppositions; empty where the search ends.
    """
    found: dict[Key, Choice] = {}
    branches: list[tuple[bool, ...]] = [()]
    while branches and len(found) < most:
        branch, *branches = branches
        choice = missing(branch)
        if not choice:
            continue
        found.setdefault(_key(choice), choice)
        met, missed = (*branch, True), (*branch, False)
        alike = _key(missing(met)) == _key(missing(missed))  # a uniform one is measured whatever comes of others
        branches += [met] if alike else [met, missed]
    return list(found.values())


def _supposed(aim: Budget | float, met: bool) -> Measured:
    """A measurement that meets the aim, or does not."""
    values = {"kl": 0.0 if met else inf}
    if isinstance(aim, Budget):
        worst = -inf if aim.metric.least else inf
        values[aim.metric.name] = aim.bound if met else worst
    return Measured(values, 0.0 if met else 1.0)


def _key(choice: Choice) -> Key:
    return tuple(sorted(choice.items()))
