"""Which rows of a plan a group's variant carries out."""

from types import SimpleNamespace

import pytest

from gpusq_onnx.pipeline.base import Detail, PlanRow
from gpusq_onnx.pipeline.details import LearnedPair, OperandPair, Pruned
from gpusq_onnx.tuning.variants import _concerns


@pytest.mark.parametrize(
    "detail",
    [
        OperandPair(format="int8", attention=3, operand="Q", fixed=False),
        LearnedPair(format="int8", attention=3),
        Pruned("2:4", "magnitude"),
    ],
)
def test_a_groups_rows_are_those_of_its_attention_and_its_weights(detail: Detail) -> None:
    row = PlanRow("w", "", "Q", "MatMul", (16, 32), "quantise activation", "", detail)
    attention = not isinstance(detail, Pruned)
    own = SimpleNamespace(attention=3 if attention else None, sites=() if attention else ("w",))
    other = SimpleNamespace(attention=2 if attention else None, sites=("v",))
    assert _concerns(row, own) and not _concerns(row, other)  # type: ignore[arg-type]
