"""`pack` and `unpack` on models that `apply` wrote."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import IMAGES, MODEL, call


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits model at 2:4, its codes stored as INT8."""
    path = tmp_path_factory.mktemp("pack") / "small.onnx"
    passes = "prune24{method=magnitude},qdq-int8{weights=int8}"
    made = call("apply", "-p", passes, "--data", IMAGES, "--samples", "16", "-q", "-o", path, MODEL)
    assert made.code == 0, made.err
    return path


def test_a_pruned_int8_model_takes_five_bits_a_weight_and_comes_back(small: Path, tmp_path: Path) -> None:
    packed, back = tmp_path / "p.gpusq", tmp_path / "back.onnx"
    shown = call("pack", small, "-o", packed)
    assert (shown.code, shown.err) == (0, "")
    assert any(line.split() == ["12", "2:4", "8", "5"] for line in shown.out.splitlines())
    reported = json.loads(call("pack", small, "-o", packed, "--json", "-").out)
    saved_bytes = sum((1 - 5 / 8) * w["dims"][0] * w["dims"][1] for w in reported["weights"])
    assert reported["bytes"] == packed.stat().st_size < small.stat().st_size - saved_bytes + 6000
    assert call("unpack", packed, "-o", back).code == 0
    assert back.read_bytes() == small.read_bytes()


def test_floats_before_pairs_are_as_small_as_codes(small: Path, tmp_path: Path) -> None:
    floats, packed, codes, back = (tmp_path / name for name in ("f.onnx", "f.gpusq", "c.gpusq", "back.onnx"))
    passes = "prune24{method=magnitude},qdq-int8"
    assert call("apply", "-p", passes, "--data", IMAGES, "--samples", "16", "-q", "-o", floats, MODEL).code == 0
    shown = call("pack", floats, "-o", packed)
    assert any(line.split() == ["12", "2:4", "8", "5"] for line in shown.out.splitlines())
    assert call("pack", small, "-o", codes, "-q").code == 0
    assert packed.stat().st_size < 1.05 * codes.stat().st_size
    assert call("unpack", packed, "-o", back).code == 0
    assert back.read_bytes() == floats.read_bytes()


def test_the_default_names(small: Path, tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(small.read_bytes())
    assert call("pack", model, "-q").code == 0
    model.unlink()
    assert call("unpack", tmp_path / "m.gpusq", "-q").code == 0
    assert model.read_bytes() == small.read_bytes()
    model.write_bytes(b"another model")
    refused = call("unpack", tmp_path / "m.gpusq")
    assert (refused.code, model.read_bytes()) == (2, b"another model")


def test_floats_say_what_would_be_smaller(tmp_path: Path) -> None:
    pruned = tmp_path / "pruned.onnx"
    assert call("apply", "-p", "prune24{method=magnitude}", "-q", "-o", pruned, MODEL).code == 0
    shown = call("pack", pruned)
    assert "17" in shown.out.split() and "qdq-int8" in shown.out


def test_a_mask_of_zeros_is_no_weight_and_a_quantised_model_is_not_to_be_quantised(small: Path, tmp_path: Path) -> None:
    made = onnx.load(small)
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((1, 1, 16, 16), np.float32), "mask"))
    made.graph.node.append(onnx.helper.make_node("Identity", ["mask"], ["shown"]))
    made.graph.output.append(onnx.helper.make_tensor_value_info("shown", onnx.TensorProto.FLOAT, None))
    onnx.save(made, tmp_path / "masked.onnx")
    shown = call("pack", tmp_path / "masked.onnx")
    assert "2:16" not in shown.out and "qdq-int8" not in shown.out
    assert any(line.split() == ["12", "2:4", "8", "5"] for line in shown.out.splitlines())


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["pack", MODEL, "-o", "{}/x.gpusq"], 3),  # nothing is pruned
        (["pack", "{}/none.onnx"], 2),
        (["unpack", MODEL, "-o", "{}/x.onnx"], 3),
        (["pack", "{}/m.onnx", "-o", "{}/m.onnx"], 2),
    ],
)
def test_what_cannot_be_done_leaves_nothing(tmp_path: Path, words: list[str | Path], code: int) -> None:
    (tmp_path / "m.onnx").write_bytes(MODEL.read_bytes())
    outcome = call(*(str(word).format(tmp_path) for word in words))
    assert outcome.code == code
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
