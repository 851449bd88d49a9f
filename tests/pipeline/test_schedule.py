"""The time left for a whole pipeline: the first estimate, what measured rates make of it, and what nobody can know."""

from __future__ import annotations

import pytest

from gpusq_onnx.pipeline import table
from gpusq_onnx.pipeline.grammar import parse
from gpusq_onnx.pipeline.schedule import Schedule
from gpusq_onnx.progress import NullProgress


class Listener(NullProgress):
    def __init__(self) -> None:
        self.remains: list[float | None] = []
        self.said: list[str] = []
        self.labels: list[str] = []

    def start(self, label: str, total: int | None = None, work: float = 0.0) -> None:
        self.labels.append(label)

    def remain(self, seconds: float | None) -> None:
        self.remains.append(seconds)

    def say(self, text: str) -> None:
        self.said.append(text)


def test_what_is_left_follows_the_measured_rate() -> None:
    """Two steps of 100 runs each; a run was expected to take 1 s and takes 2."""
    now, heard = [0.0], Listener()
    schedule = Schedule(heard, [("prune24", 100.0), ("qdq-int8", 100.0)], 1.0, lambda: now[0])
    assert schedule.expected == 200
    schedule.step(0)
    schedule.start("pruning", 10, 100.0)
    assert heard.remains[-1] == pytest.approx(200)
    for _ in range(10):
        now[0] += 20
        schedule.advance()
    schedule.finish()
    assert heard.remains[-1] == pytest.approx(200, rel=0.1)  # the second step at 2 s a run
    schedule.step(1)
    schedule.start("calibrating", 100, 100.0)
    now[0] += 100
    schedule.advance(50)
    assert heard.remains[-1] == pytest.approx(100, rel=0.1)
    now[0] += 100
    schedule.advance(50)
    assert heard.remains[-1] == pytest.approx(0, abs=1e-9)
    assert heard.labels == ["step 1 of 2, prune24: pruning", "step 2 of 2, qdq-int8: calibrating"]


def test_within_another_stage_only_the_pass_is_named() -> None:
    heard = Listener()
    schedule = Schedule(heard, [("prune24", 100.0), ("qdq-int8", 100.0)], None, numbered=False)
    schedule.step(1)
    schedule.start("calibrating")
    schedule.say("a word")
    assert (heard.labels, heard.said) == (["qdq-int8: calibrating"], ["qdq-int8: a word"])


def test_stages_share_the_work_of_their_step() -> None:
    heard = Listener()
    schedule = Schedule(heard, [("distill", 100.0)], 1.0, lambda: 0.0)
    schedule.step(0)
    schedule.start("agreement before", 10, 30.0)
    schedule.advance(10)
    schedule.finish()
    schedule.start("training", 10, 70.0)
    assert 0 < (heard.remains[-1] or 0) <= 70


def test_nothing_is_said_where_a_step_is_not_known_until_that_is_over() -> None:
    heard = Listener()
    schedule = Schedule(heard, [("distill", None), ("qdq-int8", 10.0)], 1.0, lambda: 0.0)
    schedule.announce(8, 8)
    schedule.step(0)
    schedule.start("training", 4, 100.0)
    assert (heard.said, heard.remains) == ([], [None])
    schedule.step(1)
    schedule.start("calibrating", 4, 10.0)
    assert heard.remains[-1] is not None


def test_long_work_is_announced_as_an_estimate_and_short_work_is_not() -> None:
    heard = Listener()
    Schedule(heard, [("prune24", 300.0), ("qdq-int8", 100.0)], 0.5).announce(128, 1000)
    assert heard.said == [
        "prune24, qdq-int8: about 3 min for 128 of 1000 images (more: --samples N); "
        "an estimate, from one run of one image (0.5 s)"
    ]
    Schedule(heard, [("prune24", 300.0)], 0.001).announce(128, 128)
    assert len(heard.said) == 1


@pytest.mark.parametrize(
    ("passes", "data", "expected"),
    [
        ("prune24", True, True),
        ("prune24", False, False),
        ("prune24{method=magnitude}", True, False),
        ("qdq-int8", False, True),
        ("int4-weights", False, False),
        ("int4-weights", True, True),
        ("qdq{scheme=w4a4}", True, True),
        ("fold", True, False),
        ("fp16", True, True),
        ("distill{device=cpu}", True, True),
        ("qat{device=cpu}", True, True),
    ],
)
def test_passes_say_whether_they_work_on_images(passes: str, data: bool, expected: bool) -> None:
    (step,) = table.resolve(parse(passes))
    assert bool(step.work(16, data)) is expected
    assert not step.work(0, data) or step.kind == "finetune"
