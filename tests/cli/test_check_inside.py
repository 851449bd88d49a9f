"""`check` beyond outputs: inner tensors, Polygraphy's files, and runtimes that are not there."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import ASSETS, IMAGES, LABELLED, MODEL, call
from onnx import numpy_helper

SHARED = ("--data", LABELLED, "--samples", "32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.onnx, int8.onnx made of it by `apply`, and wrong.onnx: int8.onnx with fc1 of its second block negated."""
    folder = tmp_path_factory.mktemp("check")
    (folder / "model.onnx").write_bytes(MODEL.read_bytes())
    data = ("--data", IMAGES, "--samples", "32")
    made = call("apply", "-p", "qdq-int8", *data, "-q", "-o", folder / "int8.onnx", folder / "model.onnx")
    assert made.code == 0, made.err
    proto = onnx.load(folder / "int8.onnx")
    (tensor,) = (t for t in proto.graph.initializer if t.name == broken_weight())
    tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
    onnx.save(proto, folder / "wrong.onnx")
    return folder


@cache
def broken_weight() -> str:
    weights = json.loads(call("inspect", MODEL, "--json", "-").out)["weights"]
    (name,) = (w["name"] for w in weights if w["block"] == 1 and w["role"] == "fc1")
    return name


def checked(folder: Path, candidate: str, *words: str | Path) -> dict:
    outcome = call("check", folder / "model.onnx", folder / candidate, *SHARED, "--json", "-", *words)
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


@pytest.mark.long
def test_blocks_are_looked_at_in_order_and_stay_in_tolerance(folder: Path) -> None:
    found = checked(folder, "int8.onnx", "--taps", "blocks")
    taps = found["comparison"]["taps"]
    assert len(taps) == 3
    assert all(0 < tap["relative"] < 0.1 and tap["up_to_scale"] is None for tap in taps)
    assert (found["departure"], found["tolerance"]) == (None, 0.1)
    assert found["comparison"]["top1_agreement"] == checked(folder, "int8.onnx")["comparison"]["top1_agreement"]


@pytest.mark.long
def test_what_equalising_rescaled_does_not_leave_the_tolerance(folder: Path) -> None:
    found = checked(folder, "int8.onnx", "--taps", "all")
    taps = found["comparison"]["taps"]
    computed = {n.output[0] for n in onnx.load(MODEL).graph.node if n.op_type not in ("Reshape", "Transpose")}
    assert len(taps) > 50 and {tap["name"] for tap in taps} <= computed
    assert any(tap["relative"] > 0.15 and tap["up_to_scale"] < 0.05 for tap in taps)
    assert found["departure"] is None


@pytest.mark.long
def test_the_first_tensor_that_leaves_the_tolerance_is_named(folder: Path) -> None:
    found = checked(folder, "wrong.onnx", "--taps", "all")
    product = next(n.output[0] for n in onnx.load(MODEL).graph.node if broken_weight() in n.input)
    assert found["departure"] == product
    blocks = checked(folder, "wrong.onnx", "--taps", "blocks")
    names = [tap["name"] for tap in blocks["comparison"]["taps"]]
    assert blocks["departure"] == names[1]
    alone = ("check", folder / "model.onnx", folder / "wrong.onnx", *SHARED, "--taps", product)
    assert f"{product} is the first of them to leave it" in " ".join(call(*alone).out.split())
    assert "none leaves it" in " ".join(call(*alone, "--tap-tolerance", "9").out.split())


def test_a_tap_that_is_not_there_exits_2_and_a_near_name_is_told(folder: Path) -> None:
    outcome = call("check", folder / "model.onnx", folder / "int8.onnx", *SHARED, "--taps", "layer_norm_99")
    assert outcome.code == 2
    assert "did you mean layer_norm" in outcome.err


def test_an_output_is_no_tap(folder: Path) -> None:
    outcome = call("check", folder / "model.onnx", folder / "int8.onnx", *SHARED, "--taps", "logits")
    assert (outcome.code, "compared anyway" in outcome.err) == (3, True)


def test_two_exports_of_one_model_share_few_names_and_say_so(folder: Path) -> None:
    outcome = call("check", folder / "model.onnx", ASSETS / "digits_vit_legacy17.onnx", *SHARED, "--taps", "blocks")
    assert outcome.code == 3
    assert "block" in outcome.err


def test_a_fixed_batch_on_either_side_is_kept_to(folder: Path, tmp_path: Path) -> None:
    proto = onnx.load(folder / "int8.onnx")
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 5
    onnx.save(proto, tmp_path / "five.onnx")
    data = tmp_path / "images.npz"
    with np.load(LABELLED) as arrays:
        np.savez(data, pixel_values=arrays["pixel_values"][:12])
    outcome = call("check", folder / "model.onnx", tmp_path / "five.onnx", "--data", data, "--json", "-")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["comparison"]["samples"] == 12


def test_polygraphys_files_are_written_and_named(folder: Path, tmp_path: Path) -> None:
    from polygraphy.comparator import RunResults
    from polygraphy.json import load_json

    made = tmp_path / "new" / "artefacts"
    found = checked(folder, "int8.onnx", "--artefacts", made, "--taps", "blocks")
    assert sorted(path.name for path in made.iterdir()) == found["artefacts"]
    assert found["artefacts"] == ["compressed_outputs.json", "inputs.json", "outputs.json"]
    assert any(f"--load-outputs {made / 'outputs.json'}" in command for command in found["continuation"])
    feeds = load_json(str(made / "inputs.json"))
    assert [feed["pixel_values"].shape for feed in feeds] == [(8, 3, 32, 32)] * 2
    ((_, iterations),) = RunResults.load(str(made / "outputs.json")).items()
    assert [list(iteration) for iteration in iterations] == [["logits"]] * 2
    with np.load(LABELLED) as arrays:
        assert any(np.array_equal(feeds[0]["pixel_values"][0], image) for image in arrays["pixel_values"])


def test_artefacts_into_a_file_exit_2(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    outcome = call("check", MODEL, folder / "int8.onnx", *SHARED, "--artefacts", tmp_path / "file")
    assert outcome.code == 2


@pytest.mark.parametrize(("runtime", "sentence"), [("tensorrt", "pip install"), ("cuda", "CUDAExecutionProvider")])
def test_a_runtime_that_is_not_here_exits_5_and_nothing_falls_back(folder: Path, runtime: str, sentence: str) -> None:
    outcome = call("check", MODEL, folder / "int8.onnx", *SHARED, "--on", runtime)
    if outcome.code == 0:
        pytest.skip(f"{runtime} runs here")
    assert (outcome.code, outcome.out) == (5, "")
    assert outcome.err.startswith("environment lacks something")
    assert sentence in outcome.err


def test_an_engine_file_asks_for_tensorrt(tmp_path: Path) -> None:
    (tmp_path / "m.plan").write_bytes(b"no engine")
    outcome = call("check", MODEL, tmp_path / "m.plan", *SHARED)
    assert outcome.code == 5
    assert outcome.err.startswith("environment lacks something")
    assert "the ONNX file that it was built from" in outcome.err
    backwards = call("check", tmp_path / "m.plan", tmp_path / "m.plan", *SHARED)
    assert (backwards.code, "name the ONNX file first" in backwards.err) == (2, True)
    for words in (["--parser"], ["--on", "cuda"]):
        assert call("check", MODEL, tmp_path / "m.plan", *SHARED, *words).code == 2
