"""`bench` as a command: a run on onnxruntime and one on torch's reference, and what it says where it cannot run."""

import json
from pathlib import Path

import pytest
from command_line import MODEL, call, fresh_model

from gpusq_onnx.torchgraph.lowering.backend import TorchBackend
from gpusq_onnx.workflows.baselines import given_entry

QUICK = ("--batch", "1,2", "--rounds", "3")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return fresh_model(tmp_path)


@pytest.mark.long
def test_models_are_timed_side_by_side(model: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    outcome = call("bench", model, "--backend", "onnxruntime", *QUICK, "--report", report)
    assert outcome.code == 0, outcome.err
    found = json.loads(report.read_text())
    assert {row["format"] for row in found["rows"]} == {"FP32", "FP16", "INT8"}
    assert all(set(row["cells"]) == {"1", "2"} for row in found["rows"])
    assert "onnxruntime" in " ".join(found["machine"]["versions"])
    page = report.with_suffix(".md").read_text()
    assert page.startswith("# model: timed on onnxruntime") and "throughput, batch 2 (images/s)" in page
    assert outcome.out.startswith("model: timed on onnxruntime\n")


@pytest.mark.long
def test_the_reference_of_the_torch_backend_runs_on_a_cpu(model: Path) -> None:
    pytest.importorskip("torch")
    outcome = call("bench", model, "--backend", "torch-cpu", "--batch", "1", "--rounds", "3", "--json", "-")
    assert outcome.code == 0, outcome.err
    assert {row["format"] for row in json.loads(outcome.out)["rows"]} == {"FP32", "INT8"}


@pytest.mark.parametrize("passes", ["fp16", "prune24{method=magnitude}"])
def test_a_float_model_runs_in_its_own_type(model: Path, passes: str) -> None:
    made = model.with_name("made.onnx")
    assert call("apply", "--quiet", "--passes", passes, "--samples", "2", "-o", made, model).code == 0
    backend = TorchBackend("cpu")
    assert backend.open(given_entry(made).variant, 2).measure(1) > 0
    assert backend.choices() == [] and backend.notes() == []


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--batch", "1,none"], 2, "positive numbers"),
        (["--batch", "0"], 2, "positive numbers"),
        (["--backend", "caffe"], 2, "caffe"),
        (["--rounds", "1"], 2, "rounds"),
        (["--backend", "onnxruntime", "--crop", "99"], 2, "does not fit the model's input"),
        (["--backend", "onnxruntime", "--shapes", "img=1x3x32x32"], 2, "no input is named img"),
        (["--backend", "onnxruntime", "--chart", "chart.txt"], 2, "suffix"),
        ([str(MODEL.with_name("nowhere.onnx")), "--backend", "onnxruntime"], 2, "nowhere.onnx"),
    ],
)
def test_bad_usage(model: Path, words: list[str], code: int, text: str) -> None:
    outcome = call("bench", model, *words)
    assert (outcome.code, outcome.out) == (code, "")
    assert text in outcome.err


def test_nothing_falls_back_to_the_cpu(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each GPU backend says in one sentence what is missing and what to install, and exits 5."""
    import torch

    monkeypatch.setattr("gpusq_onnx.runtime.tensorrt.gpu.current", lambda: None)
    monkeypatch.setattr("gpusq_onnx.runtime.tensorrt.library.find_spec", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for backend, remedy in {
        "tensorrt": "pip install 'gpusq-onnx[tensorrt]'",
        "onnxruntime-cuda": "NVIDIA GPU",
        "torch": "install a CUDA build of torch",
    }.items():
        outcome = call("bench", model, "--backend", backend, *QUICK)
        assert (outcome.code, outcome.out) == (5, ""), backend
        assert outcome.err.startswith("environment lacks something: ")
        assert remedy in outcome.err
        assert "Traceback" not in outcome.err


def test_tensorrt_is_the_default(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpusq_onnx.runtime.tensorrt.library.find_spec", lambda name: None)
    outcome = call("bench", model)
    assert outcome.code == 5
    assert "TensorRT" in outcome.err


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["tensorrt", "onnxruntime-cuda", "torch"])
def test_on_a_gpu(model: Path, backend: str) -> None:
    outcome = call("bench", model, "--backend", backend, *QUICK, "--json", "-")
    if outcome.code == 5:
        pytest.skip(outcome.err.strip().replace("\n", " "))
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert {"FP32", "TF32", "FP16", "INT8"} <= {row["format"] for row in found["rows"]}
    assert found["machine"]["gpu"]["name"]
