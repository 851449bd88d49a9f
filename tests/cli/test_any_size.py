"""Models that take images of any size, as optimum exports them: --crop, --shapes or the data say which."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import MODEL, call
from onnx import TensorProto, helper
from small_models import saved

from gpusq_onnx.graph import io

NAMES = ("batch", "channels", "height", "width")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The embedded model with every axis of its input dynamic, and images for it."""
    found = onnx.load_model(str(MODEL))
    for axis, name in enumerate(NAMES):
        found.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    del found.graph.value_info[:]
    path = tmp_path / "model.onnx"
    onnx.save_model(found, str(path))
    images = np.random.default_rng(0).standard_normal((8, 3, 32, 32)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    return path


@pytest.mark.long
def test_it_is_trained_at_the_size_of_its_data(model: Path) -> None:
    output = model.with_name("out.onnx")
    passes = "prune24{method=magnitude},distill{steps=2 batch=4},qdq-int8,qat{steps=2 batch=4}"
    done = call("apply", "-q", "-p", passes, "--data", model.with_name("images.npy"), "-o", output, model)
    assert done.code == 0, done.err
    assert io.load(output).inputs()[0].shape == NAMES


def test_a_missing_size_is_asked_for(model: Path) -> None:
    for words in (["bench", model, "--backend", "onnxruntime"], ["apply", "-p", "qdq-int8", model]):
        outcome = call(*words)
        assert outcome.code == 2
        assert "takes images of any size" in outcome.err and "--crop" in outcome.err
        assert ("--resize" in outcome.err) == (words[0] == "apply"), "bench has no such option"
    outcome = call("build", model, "--cpu-harness", model.parent)
    assert outcome.code == 2
    assert "--crop PX" in outcome.err and "--shapes pixel_values" in outcome.err


def test_operations_of_an_open_size_are_said_to_be_those_of_one_position(model: Path) -> None:
    words = ["plan", "-q", "-p", "prune24{method=magnitude}", "--json", "-"]
    open_size, known = call(*words, model), call(*words, "--data", model.with_name("images.npy"), model)
    fixed = call(*words, MODEL)
    assert "count one position for" in open_size.err and "--data shows them" in open_size.err
    assert "count one position" not in known.err + fixed.err
    totals = [json.loads(outcome.out)["before"]["total"]["dense_macs"] for outcome in (known, fixed)]
    assert totals[0] == totals[1]


@pytest.mark.long
@pytest.mark.parametrize("size", [["--crop", "32"], ["--shapes", "pixel_values=1x3x32x32"]])
@pytest.mark.parametrize("backend", ["onnxruntime", "torch-cpu"])
def test_it_is_timed_at_a_size(model: Path, backend: str, size: list[str]) -> None:
    outcome = call("bench", model, "--backend", backend, "--batch", "1", "--rounds", "3", *size, "--json", "-")
    assert outcome.code == 0, outcome.err
    rows = json.loads(outcome.out)["rows"]
    assert {row["model"] for row in rows} == {"model"}
    assert any(row["given"] for row in rows)


def test_shapes_that_do_not_fit_are_named(model: Path) -> None:
    outcome = call("bench", model, "--backend", "onnxruntime", "--shapes", "pixel_values=1x3x32")
    assert outcome.code == 2
    assert "the shape does not fit input pixel_values" in outcome.err


@pytest.mark.parametrize("words", [[], ["--crop", "32"]])
def test_text_of_any_length_asks_for_its_shape(tmp_path: Path, words: list[str]) -> None:
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "length"])
    rows = helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["batch", "length", 16])
    node = helper.make_node("Gather", ["table", "ids"], ["rows"])
    text = saved(tmp_path / "text.onnx", [node], [ids], [rows], {"table": np.ones((8, 16), np.float32)})
    outcome = call("bench", text, "--backend", "onnxruntime", *words)
    assert (outcome.code, outcome.out) == (2, "")
    assert "--shapes INPUT=SHAPE" in outcome.err and "ids: int64 [batch, length]" in outcome.err


@pytest.mark.long
def test_an_engine_is_built_at_a_size(model: Path, harness: Path) -> None:
    plan, report = model.with_suffix(".plan"), model.with_name("engine.json")
    done = call(
        "build", model, "--crop", "32", "--batch", "1,2", "--cpu-harness", harness, "-o", plan, "--report", report
    )
    assert done.code == 0, done.err
    assert "pixel_values:2x3x32x32" in done.out


@pytest.mark.long
@pytest.mark.parametrize("size", [["--crop", "32"], ["--crop", "32", "--shapes", "pixel_values=2x3x32x32"]])
def test_check_builds_at_the_size_of_the_data(model: Path, harness: Path, size: list[str]) -> None:
    done = call("check", model, model, "--samples", "4", "--parser", "--build", "--cpu-harness", harness, *size)
    assert done.code == 0, done.err
    assert "engine built" in done.out
