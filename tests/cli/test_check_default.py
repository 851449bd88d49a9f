"""`check` opens the compressed model as its users will, too, and survives a model that ends onnxruntime."""

import json
from pathlib import Path

import broken_onnxruntime
import onnx
import pytest
from command_line import IMAGES, LABELLED, MODEL, call

DATA = ["--data", LABELLED, "--samples", "64"]


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "int8.onnx"
    assert call("apply", MODEL, "-p", "qdq-int8", "--data", IMAGES, "--samples", "16", "-o", path).code == 0
    return path


def test_the_default_session_is_a_second_line(quantised: Path) -> None:
    outcome = call("check", MODEL, quantised, *DATA)
    assert outcome.code == 0
    assert "with onnxruntime's defaults, where Q/DQ are fused: cosine " in outcome.out
    found = json.loads(call("check", MODEL, quantised, *DATA, "--json", "-").out)["comparison"]
    assert found["default"]["samples"] == found["samples"] == 64
    (output,) = found["default"]["outputs"]
    assert output["cosine_mean"] > 0.9
    assert found["default"]["top1_agreement"] > 0.8
    assert found["default"]["candidate_metrics"]["top1"] > 0.8


def test_its_refusal_fails_the_check_without_any_gate(
    quantised: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "def load(data, optimised):\n    if b'QuantizeLinear' in data: raise RuntimeError('no such kernel')"
    broken_onnxruntime.install(monkeypatch, tmp_path, code)
    outcome = call("check", MODEL, quantised, *DATA)
    assert outcome.code == 1
    assert "a session with onnxruntime's defaults refuses to load it: no such kernel" in outcome.err
    assert "gates: none: NOT MET" in outcome.out
    assert "\nlogits " in outcome.out, "the comparison as written is reported all the same"


def test_an_original_that_ends_onnxruntime_is_compared_as_apply_reads_it(quantised: Path, tmp_path: Path) -> None:
    made = onnx.load(MODEL)
    for node in made.graph.node:
        if node.op_type == "LayerNormalization":
            node.input[2] = ""  # ends the process of onnxruntime 1.31
    onnx.save(made, tmp_path / "in.onnx")
    assert call("apply", tmp_path / "in.onnx", "-p", "prune24", "-o", tmp_path / "out.onnx").code == 0
    assert call("check", tmp_path / "in.onnx", tmp_path / "out.onnx", *DATA).code == 0


@pytest.mark.long
def test_a_model_that_ends_it_in_every_form_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_onnxruntime.install(monkeypatch, tmp_path, "def load(data, optimised):\n    die()")
    outcome = call("check", MODEL, MODEL, *DATA)
    assert (outcome.code, outcome.out) == (3, "")
    assert "onnxruntime crashes on the model" in outcome.err
    assert "SIGSEGV" in outcome.err
