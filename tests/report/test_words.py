"""Single phrases of screens: what samples are, how gates are named, and what a proof says."""

from typing import Any

import pytest

from gpusq_onnx.pipeline.outcome import OutputAgreement, Proof
from gpusq_onnx.report.checking import asked
from gpusq_onnx.report.outline import _proven
from gpusq_onnx.report.preparation import counted
from gpusq_onnx.runtime.compare.gates import Gates


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"kind": "images"}, "8 samples of images"),
        ({"kind": "arrays"}, "8 samples of arrays"),
        ({"kind": "synthetic", "preprocess": {"crop": [32, 32]}}, "8 samples of synthetic images"),
        ({"kind": "synthetic"}, "8 samples of synthetic tensors"),
        ({"kind": "parquet"}, "8 samples of a Parquet file"),
    ],
)
def test_samples_are_counted_with_a_noun(data: dict[str, Any], expected: str) -> None:
    assert counted(8, data) == expected


def test_gates_are_named_as_they_were_given() -> None:
    gates = Gates(max_top1_drop=20, min_cosine=0.5)
    assert asked(gates) == ["min_cosine = 0.5", "max_top1_drop = 20"]
    assert asked(gates, options=True) == ["--min-cosine 0.5", "--max-top1-drop 20"]


@pytest.mark.parametrize(
    ("default", "plain", "expected"),
    [
        ("ran", "ran", "the written model runs in onnxruntime with and without optimisations"),
        ("unfused: ran", "ran", "the written model runs in onnxruntime with Q/DQ as written and without optimisations"),
        ("loaded", "ran", "not proven: onnxruntime's defaults loaded, as written ran"),
    ],
)
def test_a_proof_is_a_sentence(default: str, plain: str, expected: str) -> None:
    outputs = (OutputAgreement("y", 0.5, 0.99723, True, True, True),) if default.endswith("ran") else ()
    assert _proven(Proof(default, plain, outputs)) == expected + (
        "; lowest cosine between the two 0.9972" if outputs else ""
    )
