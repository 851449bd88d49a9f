"""Exit 3 for a model that cannot be used: named, with the reason and the next step, and nothing is written."""

from pathlib import Path

import bad_models
import pytest
from bad_models import Maker
from command_line import IMAGES, MODEL, call, fresh_model
from desk import unchanged

CALIBRATION = ["--data", str(IMAGES), "--samples", "8"]

# what is wrong: how to make it, the pipeline, what the error says
UNUSABLE: dict[str, tuple[Maker, str, list[str]]] = {
    "not ONNX": (bad_models.not_onnx, "prune24", ["not an ONNX model", "model.onnx", "export or copy"]),
    "an empty file": (bad_models.empty, "prune24", ["not an ONNX model", "0 bytes"]),
    "truncated": (bad_models.truncated, "prune24", ["truncated", "model.onnx", "export or copy"]),
    "external data missing": (
        bad_models.data_missing,
        "prune24",
        ["is missing", "model.onnx.data", "copy the data file next to the model"],
    ),
    "external data truncated": (bad_models.data_truncated, "prune24", ["is truncated", "model.onnx.data"]),
    "external data outside": (bad_models.data_outside, "prune24", ["outside the model's folder", "../model.onnx.data"]),
    "external data by an absolute path": (bad_models.data_absolute, "prune24", ["relative path", "model.onnx.data"]),
    "opset 26": (bad_models.opset_26, "prune24", ["opset 26 is not supported", "11 to 25", "opset_version=20"]),
    "opset 10": (bad_models.opset_10, "prune24", ["opset 10 is not supported", "11 to 25"]),
    "NaN weights, pruned": (bad_models.with_value(float("nan")), "prune24", ["NaN", "checkpoint"]),
    "NaN weights, SparseGPT": (bad_models.with_value(float("nan")), "prune24{method=sparsegpt}", ["NaN", "checkpoint"]),
    "NaN weights, quantised": (bad_models.with_value(float("nan")), "qdq-int8", ["NaN", "checkpoint"]),
    "infinite weights": (bad_models.with_value(float("inf")), "qdq-int8", ["infinity", "1 of "]),
    "weights that overflow, quantised": (
        bad_models.huge_weights,
        "qdq-int8",
        ["made by node", "holds NaN or infinity"],
    ),
    "weights that overflow, SparseGPT": (
        bad_models.huge_weights,
        "prune24{method=sparsegpt}",
        ["read by node", "too large to be judged"],
    ),
    "no weight at all": (bad_models.no_weights, "prune24", ["no weight can be pruned", "a graph without"]),
    "no weight to quantise": (bad_models.no_weights, "qdq-int8", ["no weight can be quantised", "a graph without"]),
    "no prunable weight": (
        bad_models.odd_weight,
        "prune24{head=true}",
        ["no weight can be pruned", "not a multiple of 4"],
    ),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_a_model_that_cannot_be_used(case: str, tmp_path: Path) -> None:
    make, pipeline, says = UNUSABLE[case]
    folder = tmp_path / "work"
    folder.mkdir()
    model = folder / "model.onnx"
    make(model)
    calibration = CALIBRATION if "qdq" in pipeline or "sparsegpt" in pipeline else []
    with unchanged(tmp_path):
        outcome = call("apply", model, "-p", pipeline, *calibration)
    assert (outcome.code, outcome.out) == (3, ""), outcome.err
    for text in says:
        assert text in outcome.err


@pytest.mark.parametrize("case", ["not ONNX", "truncated", "external data missing"])
@pytest.mark.parametrize("verb", ["plan", "inspect", "check"])
def test_the_other_verbs_refuse_it_too(verb: str, case: str, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    model = folder / "model.onnx"
    UNUSABLE[case][0](model)
    words = {"plan": [model, "-p", "prune24"], "inspect": [model], "check": [MODEL, model, *CALIBRATION]}[verb]
    with unchanged(tmp_path):
        outcome = call(verb, *words)
    assert (outcome.code, outcome.out) == (3, ""), outcome.err
    assert "model.onnx" in outcome.err


@pytest.mark.parametrize(
    ("pipeline", "says"),
    [
        ("prune24{only=[blocks.99.*]}", ["'blocks.99.*' matches no weight", "prune24.only", "gpusq-onnx inspect"]),
        ("qdq-int8{skip=[fc3]}", ["'fc3' matches no weight", "qdq-int8.skip", "fc1"]),
        ("prune24{only=[patch_embed]}", ["no weight can be pruned", "channels 3"]),
        ("prune24{only=[fc1],skip=[fc1]}", ["no weight can be pruned", "skip=fc1"]),
    ],
)
def test_a_selector_that_matches_nothing(pipeline: str, says: list[str], tmp_path: Path) -> None:
    model = fresh_model(tmp_path)
    with unchanged(tmp_path):
        outcome = call("apply", model, "-p", pipeline, *CALIBRATION)
    assert (outcome.code, outcome.out) == (3, ""), outcome.err
    assert outcome.err.startswith("nothing matched: ")
    for text in says:
        assert text in outcome.err


@pytest.mark.parametrize(
    ("first", "again", "says"),
    [
        ("qdq-int8", "qdq-int8", ["quantised already", "start from the float model"]),
        ("qdq-int8{weights=int8}", "qdq-int8", ["quantised already"]),
        ("qdq-int8", "prune24", ["quantised already", "--passes prune24,qdq-int8"]),
        ("prune24,qdq-int8", "prune24,qdq-int8", ["quantised already"]),
        ("prune24{method=magnitude}", "prune24{method=magnitude}", ["'prune24' changed nothing", "--allow-noop"]),
        ("prune24{method=sparsegpt}", "prune24{method=sparsegpt}", ["'prune24' changed nothing", "--allow-noop"]),
    ],
)
def test_on_its_own_output_it_refuses_and_says_which(first: str, again: str, says: list[str], tmp_path: Path) -> None:
    model = fresh_model(tmp_path)
    made = model.with_name("made.onnx")
    assert call("apply", model, "-p", first, *CALIBRATION, "-o", made).code == 0
    with unchanged(tmp_path):
        outcome = call("apply", made, "-p", again, *CALIBRATION, "-o", model.with_name("again.onnx"))
    assert (outcome.code, outcome.out) == (3, ""), outcome.err
    for text in says:
        assert text in outcome.err


def test_nothing_to_do_is_allowed_on_request(tmp_path: Path) -> None:
    model = fresh_model(tmp_path)
    made, again = model.with_name("made.onnx"), model.with_name("again.onnx")
    assert call("apply", model, "-p", "prune24", "-o", made).code == 0
    assert call("apply", made, "-p", "prune24", "--allow-noop", "-o", again).code == 0
    assert again.exists()


@pytest.mark.long
@pytest.mark.parametrize("stored", ["one file", "external data"])
@pytest.mark.parametrize("pipeline", ["prune24{method=magnitude}", "prune24{method=sparsegpt},qdq-int8"])
def test_the_same_command_twice_gives_the_same_bytes(pipeline: str, stored: str, tmp_path: Path) -> None:
    made = []
    for turn in ("first", "second"):
        folder = tmp_path / turn
        folder.mkdir()
        model = folder / "model.onnx"
        if stored == "one file":
            model.write_bytes(MODEL.read_bytes())
        else:
            bad_models.external(model)
        assert call("apply", model, "-p", pipeline, *CALIBRATION).code == 0
        made.append({path.name: path.read_bytes() for path in folder.iterdir() if "gpusq" in path.name})
    assert made[0] == made[1]
    assert len(made[0]) == (1 if stored == "one file" else 2)
