"""What a plan is said to cost in accuracy, by what it does; and which kernels weights are said to get."""

import pytest

from gpusq_onnx.pipeline.base import PlanRow
from gpusq_onnx.pipeline.details import Pruned
from gpusq_onnx.pipeline.outcome import StepOutcome
from gpusq_onnx.report.advice import accuracy, verdict
from gpusq_onnx.report.kernels import ONNXRUNTIME, Obstacle
from gpusq_onnx.report.prediction import Predicted


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


def weight(kernel: str, obstacle: str) -> Predicted:
    return Predicted("w", "fc1", kernel, False, (Obstacle(obstacle, "", "", True),), ())


def test_what_tensorrt_does_not_take_runs_no_kernel_of_its() -> None:
    other, dense = weight(ONNXRUNTIME, "runtime"), weight("dense FP32", "precision")
    assert verdict([other, other], will=True) == "TensorRT will run none of the 2 weights"
    assert verdict([other, other, dense], will=False) == (
        "1 of 3 weights can run dense kernels, 2 onnxruntime only, 1 dense FP32: "
        "a form that TensorRT does not take (2), a type without sparse kernels (1)"
    )


def test_training_brings_most_of_it_back() -> None:
    assert "several points" in accuracy([step("prune24", Pruned("2:4", "sparsegpt")), step("distill")])


def test_nothing_is_said_of_what_was_not_measured() -> None:
    assert accuracy([step("fold")]) == ""
