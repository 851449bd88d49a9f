"""What a plan is said to cost in accuracy, by what it does."""

import pytest

from gpusq_onnx.pipeline.base import PlanRow
from gpusq_onnx.pipeline.details import Pruned
from gpusq_onnx.pipeline.outcome import StepOutcome
from gpusq_onnx.report.advice import accuracy


def step(name: str, *details: Pruned) -> StepOutcome:
    rows = [PlanRow(f"w{i}", "", "fc1", "MatMul", (64, 64), "prune", "", detail) for i, detail in enumerate(details)]
    return StepOutcome(name, 1, {}, tuple(rows))


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        ([Pruned("2:4", "sparsegpt"), Pruned("2:4", "magnitude")], "83.5 % to 53 %; with 1000 images"),
        ([Pruned("2:4", "magnitude")], "83.5 % to 6 %"),
        ([Pruned("4:8pair", "sparsegpt")], "far below the model's until trained"),
    ],
)
def test_pruning_alone_costs_much_and_its_method_decides_how_much(details: list[Pruned], expected: str) -> None:
    assert expected in accuracy([step("prune24", *details)])


def test_training_brings_most_of_it_back() -> None:
    assert "several points" in accuracy([step("prune24", Pruned("2:4", "sparsegpt")), step("distill")])


def test_nothing_is_said_of_what_was_not_measured() -> None:
    assert accuracy([step("fold")]) == ""
