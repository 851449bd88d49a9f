"""What a plan is said to cost in accuracy, by what it does; and which kernels weights are said to get."""

import re
from pathlib import Path
from typing import get_args

import pytest

from gpusq_onnx.pipeline.base import SKIP, PlanRow
from gpusq_onnx.pipeline.details import Pruned
from gpusq_onnx.pipeline.outcome import StepOutcome
from gpusq_onnx.report import advice
from gpusq_onnx.report.advice import accuracy, for_plan, verdict
from gpusq_onnx.report.kernels import ONNXRUNTIME, UNKNOWN, Deciding, KernelClass, Likely, Obstacle
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


FP32, FP16, INT8 = (KernelClass("dense", (kind,)) for kind in ("FP32", "FP16", "INT8"))


def weight(kernel: KernelClass, obstacle: Deciding | Likely) -> Predicted:
    return Predicted("w", "fc1", kernel, False, (Obstacle(obstacle, "", ""),), ())


def test_what_tensorrt_does_not_take_runs_no_kernel_of_its() -> None:
    other, dense = weight(ONNXRUNTIME, "runtime"), weight(FP32, "precision")
    assert verdict([other, other], will=True) == "TensorRT will run none of the 2 weights"
    assert verdict([other, other, dense], will=False) == (
        "1 of 3 weights can run dense kernels, 2 onnxruntime only, 1 dense FP32: "
        "a form that TensorRT does not take (2), a type without sparse kernels (1)"
    )


def test_a_form_for_research_has_no_dense_kernel_either() -> None:
    unknown, dense = weight(UNKNOWN, "research"), weight(FP32, "precision")
    assert verdict([unknown, unknown, dense], will=False) == (
        "1 of 3 weights can run dense kernels, 2 none known, 1 dense FP32: "
        "a form that is written for research (2), a type without sparse kernels (1)"
    )
    assert verdict([unknown], will=False) == (
        "none of 1 weights can run dense kernels, 1 none known: a form that is written for research (1)"
    )


@pytest.mark.parametrize("kind", get_args(Deciding))
def test_each_obstacle_that_decides_is_explained(kind: Deciding) -> None:
    found = verdict([weight(FP32, kind)], will=True)
    assert found.startswith("all 1 weights will run dense kernels, 1 dense FP32: ")
    assert f": {kind} (" not in found


def test_training_brings_most_of_it_back() -> None:
    assert "several points" in accuracy([step("prune24", Pruned("2:4", "sparsegpt")), step("distill")])


def test_nothing_is_said_of_what_was_not_measured() -> None:
    assert accuracy([step("fold")]) == ""


def test_nothing_is_said_where_most_weights_stay_as_they_are() -> None:
    pruned = step("prune24", Pruned("2:4", "sparsegpt"))
    others = [PlanRow(f"v{i}", "", "fc2", "MatMul", (64, 64), SKIP, "not selected") for i in range(2)]
    assert accuracy([StepOutcome("prune24", 1, {}, (*pruned.rows, *others[:1]))])
    assert accuracy([StepOutcome("prune24", 1, {}, (*pruned.rows, *others))]) == ""


def test_every_figure_is_one_of_the_tables() -> None:
    tables = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for text in (*advice._UNPRUNED.values(), *advice._TRAINED.values()):
        for figure in re.findall(r"[\d.]+ %", text):
            assert f"| {figure} " in tables or ("dense 83.5 %" in tables and figure == "83.5 %"), figure


def test_a_target_without_sparse_kernels_is_not_promised_any() -> None:
    weights = [weight(KernelClass("sparse", ("INT8",)), "output"), weight(FP32, "precision")]
    assert verdict(weights, will=True, target="cpu") == "onnxruntime computes all 2 weights dense: 1 INT8, 1 FP32"
    assert for_plan(weights, "qdq-int8", "cpu") == []
    assert verdict([], will=True, target="cpu") == "no weight of a MatMul, Gemm or Conv"


@pytest.mark.parametrize(
    ("pipeline", "expected"),
    [
        ("qdq-int8", "put prune24 first"),
        ("permute", "add prune24 after permute"),
        ("prune24{only=fc1}", "widen prune24's choice"),
    ],
)
def test_advice_for_the_pattern_keeps_the_order_of_passes(pipeline: str, expected: str) -> None:
    (line,) = for_plan([weight(FP16, "pattern")], pipeline, None)
    assert line == f"for the 2:4 pattern (1 weights): {expected}"


def test_advice_names_options_of_passes_that_are_in_the_pipeline() -> None:
    assert for_plan([weight(INT8, "output")], "int4-weights", None) == []
    (line,) = for_plan([weight(INT8, "output")], "qdq-int4,qat", None)
    assert line.endswith("--set qdq-int4.profile=sparse-int8")
