"""The timing harness against a clock that the test turns: what it counts, in which order, and what it makes of it."""

import pytest

from gpusq_onnx.runtime.bench.timing import MOST, Rounds, Timing, WallClock, rotated, time_side_by_side


class Made:
    """A runner with a known cost, slowed by what the machine does at the moment."""

    def __init__(self, log: list[str], name: str, seconds: float, weather: dict[str, float]) -> None:
        self.log, self.name, self.seconds, self.weather = log, name, seconds, weather

    def measure(self, times: int) -> float:
        self.log.append(self.name)
        return times * self.seconds * self.weather["factor"]

    def close(self) -> None:
        self.log.append(f"{self.name} closed")


def test_medians_quartiles_and_spread() -> None:
    timing = Timing((4.0, 1.0, 2.0, 3.0, 5.0), 7)
    assert timing.median == 3.0
    assert timing.quartiles == (2.0, 4.0)
    assert timing.spread == pytest.approx(2 / 3)
    assert Timing((2.0,), 1).spread == 0.0


def test_ratios_are_paired_by_round() -> None:
    """A machine that slows down tenfold in the middle changes neither ratio, though it moves both medians."""
    slow = [1.0, 1.0, 10.0, 10.0, 10.0]
    ours, theirs = Timing(tuple(slow), 1), Timing(tuple(3 * s for s in slow), 1)
    assert ours.faster_than(theirs) == pytest.approx(3.0)
    assert theirs.faster_than(ours) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="zip"):
        ours.faster_than(Timing((1.0,), 1))


def test_rounds_interleave_and_every_position_changes() -> None:
    log: list[str] = []
    weather = {"factor": 1.0}
    runners = {name: Made(log, name, cost, weather) for name, cost in [("a", 0.001), ("b", 0.002), ("c", 0.004)]}
    found = time_side_by_side(runners, Rounds(rounds=6, warm=0.05, least=0.01))
    rounds = [tuple(log[-18:][3 * i : 3 * i + 3]) for i in range(6)]
    assert all(set(order) == {"a", "b", "c"} for order in rounds)
    assert len(set(rounds)) == 6  # nobody keeps a neighbour
    assert {name: round(t.median, 6) for name, t in found.items()} == {"a": 0.001, "b": 0.002, "c": 0.004}
    assert [t.executions for t in found.values()] == [10, 5, 3]
    assert found["a"].faster_than(found["c"]) == pytest.approx(4.0)


def test_warm_up_lasts_as_long_as_asked_and_samples_have_a_ceiling() -> None:
    spent = 0.0

    class Counted:
        def measure(self, times: int) -> float:
            nonlocal spent
            spent += times * 1e-7
            return times * 1e-7

        def close(self) -> None:
            raise AssertionError("the one who opened it closes it")

    found = time_side_by_side({"x": Counted()}, Rounds(rounds=1, warm=0.01, least=0.02))
    assert found["x"].executions == MOST
    assert spent >= 0.01 + MOST * 1e-7


@pytest.mark.parametrize("count", [1, 2, 5])
def test_an_order_has_everybody_once(count: int) -> None:
    names = [str(i) for i in range(count)]
    assert all(sorted(rotated(names, turn)) == names for turn in range(2 * count + 1))


def test_the_wall_clock_counts_calls() -> None:
    now, calls = [0.0], []

    def run() -> None:
        calls.append(1)
        now[0] += 0.25

    assert WallClock(run, lambda: now[0]).measure(4) == 1.0
    assert len(calls) == 4
