"""Several processes that measure ahead: the search finds what it finds with one, in fewer turns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from test_search import layered

from gpusq_onnx.runtime.crew import Crew
from gpusq_onnx.tuning.ahead import searched
from gpusq_onnx.tuning.budget import Budget, parse_budget
from gpusq_onnx.tuning.rounds import Measure, Measured, Tuner
from gpusq_onnx.tuning.treatments import offered


@dataclass(frozen=True)
class Turns(Crew):
    """Notes how many works are dealt out in each turn, and does all of them."""

    made: list[int] = field(default_factory=list)

    def gathered(self, works: Sequence[Callable[[], Any]]) -> list[Any]:
        self.made.append(len(works))
        assert len(works) <= self.size
        return [work() for work in works]


def found_by(size: int, aim: Budget | float) -> tuple[Tuner, list[int]]:
    groups, losses = layered(6)
    crew = Turns(size=size)

    def measure(choice: Mapping[str, str], trained: bool) -> Measured:
        return Measured({"kl": sum(losses[g][form] for g, form in choice.items())}, 1.0)

    def search(answer: Measure) -> Tuner:
        tuner = Tuner(groups, losses, answer, 8)
        tuner.uniform(offered(None))
        tuner.toward(aim)
        return tuner

    return searched(search, measure, aim, crew), crew.made


@pytest.mark.parametrize("aim", [parse_budget("kl<=5"), parse_budget("kl<=0.03"), 0.05])
@pytest.mark.parametrize("size", [2, 3, 8])
def test_more_processes_find_the_same_in_fewer_turns(size: int, aim: Budget | float):
    alone, each = found_by(1, aim)
    tuner, turns = found_by(size, aim)
    assert tuner.points == alone.points
    assert set(each) == {1} and len(each) == len(alone.points)
    assert len(turns) < len(each) and max(turns) <= size
