"""Single phrases of screens: what samples are, how gates are named, and what a proof says."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engine_models import five_linears

from gpusq_onnx.graph.io import load
from gpusq_onnx.pipeline.outcome import OutputAgreement, Proof
from gpusq_onnx.report.checking import asked
from gpusq_onnx.report.columns import columns, unfolded
from gpusq_onnx.report.inspection import inspect_model
from gpusq_onnx.report.outline import _like, _proven, of_inspection
from gpusq_onnx.report.preparation import counted
from gpusq_onnx.runtime.compare.gates import Gates

ASSETS = Path(__file__).parents[1] / "assets"


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


def test_the_next_command_names_data_that_the_model_takes(tmp_path: Path) -> None:
    vit, linears = (
        inspect_model(load(ASSETS / "digits_vit.onnx")),
        inspect_model(load(five_linears(tmp_path / "m.onnx"))),
    )
    assert of_inspection("m.onnx", vit, 200)[-1].endswith("--data images/ m.onnx")
    plain = replace(linears, weights=tuple(replace(weight, quantised=()) for weight in linears.weights), metadata={})
    assert of_inspection("m.onnx", plain, 200)[-1].endswith("--data inputs.npz m.onnx")
    assert _like({"kind": "synthetic"}) == "inputs.npz"
    assert {_like(data) for data in (None, {"kind": "images"}, {"kind": "synthetic", "preprocess": {"a": 1}})} == {
        "images/"
    }


def test_of_a_made_name_a_screen_shows_both_ends_and_a_pipe_all() -> None:
    name, header = "first" + "x" * 3000 + "last", ["tensor", "why"]
    text = re.sub(r"\s+(kept|why)?\s*", "", "".join(columns(header, [[name, "kept"]], 80)))
    assert len(text) < 300 and "first" in text and "…" in text and text.endswith("last")
    assert unfolded(header, [[name, "kept"]])[1].split() == [name, "kept"]
