"""The convex road against all choices of small knapsacks, and the search that measures along it."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusq_onnx.report.tuning import Group
from gpusq_onnx.tuning.budget import parse_budget
from gpusq_onnx.tuning.groups import Groups
from gpusq_onnx.tuning.rounds import Measured, Tuner
from gpusq_onnx.tuning.search import along, hull, moves
from gpusq_onnx.tuning.trained import TrainingRounds
from gpusq_onnx.tuning.treatments import DENSE, TREATMENTS, offered

FORMS = {"2:4": 8.0, "int8": 1.0, "2:4 int8": 0.5}
LOSSES = st.fixed_dictionaries({form: st.integers(0, 50).map(float) for form in FORMS})


def points(losses: Mapping[str, float], size: float) -> dict[str, tuple[float, float]]:
    return {DENSE: (16 * size, 0.0)} | {form: (size * cost, losses[form]) for form, cost in FORMS.items()}


@given(st.lists(LOSSES, min_size=1, max_size=3))
def test_no_choice_is_better_than_a_stop_of_the_road(losses: list[dict[str, float]]):
    groups = {str(number): points(one, number + 1) for number, one in enumerate(losses)}
    start, road = dict.fromkeys(groups, DENSE), moves(groups)
    every = [dict(zip(groups, forms, strict=True)) for forms in product(*groups.values())]

    def sums(choice: Mapping[str, str]) -> tuple[float, float]:
        found = [groups[name][form] for name, form in choice.items()]
        return sum(cost for cost, _ in found), sum(loss for _, loss in found)

    for count in range(len(road) + 1):
        cost, loss = sums(along(start, road, count))
        assert not any(c < cost - 1e-9 and x < loss - 1e-9 for c, x in map(sums, every))


@given(LOSSES)
def test_prices_rise_along_a_group_and_the_hull_ends_at_the_cheapest(losses: dict[str, float]):
    prices = [move.price for move in moves({"one": points(losses, 1)})]
    assert prices == sorted(prices)
    assert hull(points(losses, 1))[-1] == "2:4 int8"


def layered(count: int) -> tuple[Groups, dict[str, dict[str, float]]]:
    """Groups of one size whose later ones bear more."""
    operations = {DENSE: 16.0, **FORMS}
    groups = tuple(Group(f"layer {n}", "fc1", n, (f"w{n}",), None, operations) for n in range(count))
    losses = {g.name: {DENSE: 0.0, "2:4": 8.0 / (n + 1), "int8": 0.01, "2:4 int8": 8.1 / (n + 1)} for n, g in
              enumerate(groups)}  # fmt: skip
    return Groups(groups, 16.0 * count, {}, {}), losses


def tuner(most: int) -> Tuner:
    groups, losses = layered(6)

    def measure(choice: dict[str, str], trained: bool) -> Measured:
        return Measured({"kl": sum(losses[g][form] for g, form in choice.items())}, 1.0)

    return Tuner(groups, losses, measure, most)


def test_the_cheapest_that_meets_the_budget_and_no_uniform_choice_is_cheaper():
    search = tuner(20)
    search.uniform(offered(None))
    budget = parse_budget("kl<=5")
    found = search.toward(budget)
    assert found is not None and budget.met_by(found.values)
    assert all(found.share <= point.share for point in search.points if budget.met_by(point.values))
    uniform = next(point for point in search.points if point.name == "uniform int8")
    assert found.share < uniform.share
    assert found.choice["layer 0"] == "int8" and found.choice["layer 5"] == "2:4 int8"


def test_at_equal_cost_the_road_is_measured_beside_the_uniform_choice():
    search = tuner(1)
    search.uniform(offered(None))
    by_name = {point.name: point for point in search.points}
    own, whole = by_name["search at the cost of uniform 2:4"], by_name["uniform 2:4"]
    assert own.share <= whole.share and own.values["kl"] < whole.values["kl"]


def test_the_best_at_a_cost_and_a_cost_that_nothing_has():
    search = tuner(3)
    search.uniform(offered(None))
    found = search.toward(0.05)
    assert found is not None and found.share <= 0.05
    assert all(found.values["kl"] <= point.values["kl"] for point in search.points if point.share <= 0.05)
    assert search.toward(0.01) is None


def test_a_size_counts_as_it_was_made_and_not_as_planned():
    """Scales take bytes that no plan has: here as many as a fourteenth of the dense model."""
    packed = {DENSE: 32.0, "2:4": 17.0, "int8": 8.0, "2:4 int8": 5.0}
    groups, losses = layered(6)
    every = tuple(replace(group, packed=packed) for group in groups.groups)
    groups = Groups(every, groups.total, {}, {}, packed=32.0 * len(every))

    def measure(choice: Mapping[str, str], trained: bool) -> Measured:
        kl = sum(losses[g][form] for g, form in choice.items())
        return Measured({"kl": kl}, groups.share(choice, "packed") + 1 / 14)

    search = Tuner(groups, losses, measure, 9, "packed")
    found = search.toward(0.5)
    assert found is not None and found.packed is not None and found.packed <= 0.5
    assert [point.packed is not None and point.packed > 0.5 for point in search.points] == [True, False]
    assert search.toward(0.1) is None


def test_no_more_is_measured_than_was_allowed():
    search = tuner(2)
    assert search.toward(parse_budget("kl<=5")) is not None
    assert len(search.points) == 2


def test_a_budget_that_nothing_meets():
    search = tuner(9)
    search.uniform(offered(None))
    assert search.toward(parse_budget("kl<=0.0001")) is None


def taught(most: int) -> tuple[Tuner, dict[str, dict[str, float]]]:
    """Training leaves a twentieth of what pruning costs, and half of the rest."""
    groups, losses = layered(6)

    def measure(choice: Mapping[str, str], trained: bool) -> Measured:
        left = {form: (0.05 if form.startswith("2:4") else 0.5) if trained else 1.0 for form in TREATMENTS}
        return Measured({"kl": sum(losses[g][form] * left[form] for g, form in choice.items())}, 1.0)

    return Tuner(groups, losses, measure, most), losses


def test_training_shows_what_it_brings_back_and_the_choice_is_made_anew():
    search, losses = taught(9)
    search.uniform(offered(None))
    budget = parse_budget("kl<=0.6")
    untrained = search.toward(budget)
    rounds = TrainingRounds(search, budget, losses)
    rounds.go(3)
    found = search.best(budget)
    assert untrained is not None and found is not None and found.trained and found.share < untrained.share
    assert rounds.recovery is not None and rounds.recovery.pruned == pytest.approx(0.05, abs=0.01)
    cheapest = min(search.share(choice) for choice in search.stops(losses) if taught_kl(choice, losses) <= 0.6)
    assert found.share == cheapest
    assert next(point.name for point in search.points if point.trained) == "round 1, trained"


def taught_kl(choice: Mapping[str, str], losses: Mapping[str, Mapping[str, float]]) -> float:
    return sum(losses[g][form] * (0.05 if form.startswith("2:4") else 0.5) for g, form in choice.items())


def test_at_a_cost_what_is_nearest_once_trained_is_found():
    search, losses = taught(9)
    search.uniform(offered(None))
    untrained = search.toward(0.05)
    TrainingRounds(search, 0.05, losses).go(3)
    found = search.best(0.05)
    assert untrained is not None and found is not None and found.share <= 0.05
    assert found.trained and found.values["kl"] < untrained.values["kl"]


def test_nothing_is_trained_where_nothing_could_be_better():
    search, losses = taught(9)
    search.uniform(offered(None))
    budget = parse_budget("kl<=100")
    search.toward(budget)
    rounds = TrainingRounds(search, budget, losses)
    rounds.go(3)
    assert rounds.recovery is None and not any(point.trained for point in search.points)


@pytest.mark.parametrize("target", [None, "ampere", "cpu"])
def test_a_target_has_its_own_forms(target: str | None):
    names = [treatment.name for treatment in offered(target)]
    assert names[0] == DENSE and "int8" in names
    assert ("w4a8" in names) == (target is not None)
    assert ("2:4 int8" in names) == (target != "cpu")
    assert set(names) <= set(TREATMENTS)
