"""`build`: what it prints, writes and leaves, and its exit codes; engines come from the harness that needs no GPU."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import HEARS_SIGNALS, ROOT, call, fresh_model
from desk import unchanged
from onnx import TensorProto, helper, numpy_helper

from gpusq_onnx import __version__
from gpusq_onnx.graph.io import file_digest, load
from gpusq_onnx.runtime.store import Store
from gpusq_onnx.runtime.tensorrt.options import BuildOptions
from gpusq_onnx.runtime.tensorrt.profiles import make_profiles, parse_batch

pytestmark = pytest.mark.long


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """x [N, 16] through one Linear, alone in a folder."""
    path = tmp_path / "work" / "model.onnx"
    path.parent.mkdir()
    write(path, [helper.make_node("MatMul", ["x", "w"], ["y"], "/fc/MatMul")], {"w": np.ones((16, 8), np.float32)})
    return path


def write(path: Path, nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray]) -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size]) for name, size in (("x", 16), ("y", 8))]
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)


def test_an_engine_is_built_and_reported(model: Path, harness: Path) -> None:
    report, log = model.with_name("engine.json"), model.with_name("build.log")
    done = call("build", model, "--batch", "1,4,8", "--cpu-harness", harness, "--report", report, "--log", log)
    assert done.code == 0, done.err
    assert "NOT FOR DEPLOYMENT" in done.err
    assert "trtexec --onnx=" in done.out and "polygraphy convert" in done.out
    document = json.loads(report.read_text())
    assert document["engine"]["path"] == str(model.with_suffix(".plan"))
    assert document["engine"]["bytes"] == model.with_suffix(".plan").stat().st_size
    assert document["sparsity"] == {
        "known": False, "eligible": None, "chosen": None, "eligible_layers": [], "chosen_layers": [], "unmatched": [],
    }  # fmt: skip
    assert set(document["verdicts"]) == {"FP32 as predicted, sparsity not reported"}
    assert all(weight["layer"] for weight in document["weights"])
    assert "Building engine with configuration" in log.read_text()
    page = report.with_suffix(".md").read_text()
    assert page.startswith("# ") and "NOT FOR DEPLOYMENT" in page and "trtexec --onnx=" in page
    assert all(f"| {layer['name']} " in page for layer in document["layers"])
    names = {file.name for file in model.parent.iterdir()}
    assert names == {"model.onnx", "model.plan", "model.plan.json", "engine.json", "engine.md", "build.log"}


def test_a_quantised_model_computes_in_int8_as_predicted(tmp_path: Path, harness: Path) -> None:
    model = fresh_model(tmp_path)
    small = model.with_name("small.onnx")
    assert call("apply", "--passes", "prune24,qdq-int8", "--samples", "4", "-o", small, model).code == 0
    done = call("build", small, "--batch", "4", "--cpu-harness", harness, "--json", "-")
    weights = json.loads(done.out)["weights"]
    inside = [weight for weight in weights if weight["role"] in ("qkv", "proj", "fc1", "fc2")]
    assert {(w["predicted"], w["precision"]) for w in inside} == {("dense INT8", "INT8")}
    assert {w["predicted_eligible"] for w in inside} == {True}


def test_json_alone_on_stdout_and_quiet(model: Path, harness: Path) -> None:
    words = ["build", model, "--batch", "2", "--cpu-harness", harness, "-o", model.with_name("e.engine"), "--quiet"]
    assert json.loads(call(*words, "--json", "-").out)["passed"] is True
    assert call(*words).out == ""
    assert model.with_name("e.engine").is_file() and model.with_name("e.engine.json").is_file()


def test_ctrl_c_in_the_middle_of_a_build_leaves_nothing(tmp_path: Path, harness: Path) -> None:
    model = fresh_model(tmp_path)
    words = ["build", str(model), "--batch", "2", "--cpu-harness", str(harness), "--cache", str(model.parent / "cache")]
    code = f"{HEARS_SIGNALS}; import sys; from gpusq_onnx.cli import main; sys.exit(main())"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with unchanged(model.parent):
        command = [sys.executable, "-c", code, *words]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
            deadline = time.monotonic() + 60
            while not list(model.parent.glob(".gpusq-onnx-*/**/log.txt")) and time.monotonic() < deadline:
                time.sleep(0.02)
            running.send_signal(signal.SIGINT)
            out, err = running.communicate(timeout=60)
        assert (running.returncode, out) == (130, b""), err
    assert b"interrupted; no file was left half-written" in err


def test_without_a_batch_it_says_so(model: Path, harness: Path) -> None:
    done = call("build", model, "--cpu-harness", harness, "-q")
    assert done.code == 0
    assert "no --batch" in done.err


def test_a_cache_that_is_a_file_is_refused_before_the_build(model: Path, harness: Path) -> None:
    plan = model.with_name("never.plan")
    done = call("build", model, "--batch", "2", "--cpu-harness", harness, "--cache", model, "-o", plan)
    assert done.code == 2 and "no folder can be made for the cache" in done.err
    assert not list(model.parent.glob("never*"))


def test_the_cache_is_used(model: Path, harness: Path) -> None:
    words = ["build", model, "--batch", "2", "--cpu-harness", harness, "--cache", model.with_name("c"), "--json", "-"]
    first, second = (json.loads(call(*words).out) for _ in range(2))
    assert (first["engine"]["cached"], second["engine"]["cached"]) == (False, True)
    assert first["engine"]["sha256"] == second["engine"]["sha256"]
    assert first["layers"] == second["layers"] != []


def test_without_tensorrt_it_exits_5_and_says_what_to_install(model: Path) -> None:
    with unchanged(model.parent):
        done = call("build", model, "--batch", "2")
    assert done.code == 5
    assert "TensorRT is not installed" in done.err
    assert "pip install 'gpusq-onnx[tensorrt]'" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--batch", "8,1"], "must rise"),
        (["--batch", "x"], "--batch cannot be read"),
        (["--shapes", "nowhere:1x16"], "no input is named nowhere"),
        (["--crop", "32"], "takes no images"),
        (["--memory", "disk:1G"], "--memory cannot be read"),
        (["--optimization-level", "6"], "--optimization-level"),
        (["--min-sparse-chosen", "many"], "--min-sparse-chosen cannot be read"),
        (["--min-sparse-chosen", "1"], "cannot be judged without a GPU"),
        (["--rtx", "--hardware-compatible", "ampere_plus"], "no hardware compatibility"),
        (["-o", "model.onnx"], "would overwrite the model"),
        (["--report", "model.plan.json"], "would overwrite"),
    ],
)
def test_bad_usage_exits_2_and_builds_nothing(
    model: Path, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    with unchanged(model.parent):
        done = call("build", "model.onnx", *words, "--cpu-harness", "harness")
    assert done.code == 2, done.err
    assert said in done.err


def test_a_model_that_tensorrt_refuses_exits_3_and_leaves_nothing(model: Path, harness: Path) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "quantise"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["dq"]),
        helper.make_node("MatMul", ["dq", "w"], ["y"]),
    ]
    write(model, nodes, {"s": np.float32(0.1), "z": np.int8(3), "w": np.ones((16, 8), np.float32)})
    with unchanged(model.parent):
        done = call("build", model, "--batch", "2", "--cpu-harness", harness)
    assert done.code == 3, done.err
    assert "node quantise (QuantizeLinear)" in done.err and "Non-zero zero point" in done.err


FAKE_RTX = """
__version__ = "1.7.0"
class ILogger:
    def __init__(self): pass
class Logger(ILogger):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)
class NetworkDefinitionCreationFlag:
    STRONGLY_TYPED = EXPLICIT_BATCH = 1
class Builder:
    def __init__(self, logger): pass
    def create_network(self, flags): return object()
"""


@pytest.mark.parametrize(("gate", "code"), [("1", 0), ("50%", 0), ("2", 1), ("51%", 1)])
def test_the_gate_is_judged_on_an_engine_from_the_cache(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: str, code: int
) -> None:
    """An earlier build on a GPU has left its engine and log; TensorRT-RTX starts here, and need not build again."""
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "tensorrt_rtx.py").write_text(FAKE_RTX)
    monkeypatch.syspath_prepend(str(tmp_path / "fake"))
    monkeypatch.delitem(sys.modules, "tensorrt_rtx", raising=False)
    options = BuildOptions(make_profiles(load(model).inputs(), [parse_batch("4")]), rtx=True)
    identity = {"library": "TensorRT-RTX 1.7", "version": "1.7.0", "gpu": None}
    key = {**identity, "tool": __version__, "model": file_digest(model), "options": options.to_dict()}
    log = [
        "(Sparsity) Found 2 layer(s) eligible to use sparse tactics",
        "(Sparsity) Chose 1 layer(s) using sparse tactics",
    ]
    notes = {"sha256": "0", "bytes": 1, "inspector": "", "uninspected": "", "seconds": 1.0, "log": log}
    source = tmp_path / "engine"
    source.write_bytes(b"x")
    Store(tmp_path / "cache", "engines").keep(key, source, notes)
    report = tmp_path / "r.json"
    words = ["--rtx", "--batch", "4", "--cache", tmp_path / "cache", "--min-sparse-chosen", gate, "--report", report]
    done = call("build", model, *words)
    assert done.code == code, done.err
    assert ("gate failed: " in done.err) == (code == 1)
    assert json.loads(report.read_text())["passed"] == (code == 0)
    assert "1 chosen of 2 eligible" in done.out
