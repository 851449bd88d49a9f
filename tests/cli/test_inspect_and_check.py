"""`inspect` and `check` on the embedded model: what they print, what they write, when they fail."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import ASSETS, IMAGES, LABELLED, call, fresh_model
from onnx import helper, numpy_helper


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return fresh_model(tmp_path)


def edited(model: Path, edit: Callable[[str, np.ndarray], np.ndarray]) -> Path:
    """A copy beside the model with every matrix [K, N] that a MatMul reads changed by `edit`."""
    proto = onnx.load(model)
    read = {node.input[1] for node in proto.graph.node if node.op_type == "MatMul"}
    for tensor in proto.graph.initializer:
        if tensor.name in read:
            values = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(edit(tensor.name, values.copy()), tensor.name))
    changed = model.with_name("changed.onnx")
    onnx.save(proto, changed)
    return changed


def sparse(_: str, w: np.ndarray) -> np.ndarray:
    w[0::4] = 0
    w[3::4] = 0
    return w


def test_inspect_of_a_dense_float_model(model: Path) -> None:
    found = json.loads(call("inspect", model, "--json", "-").out)
    assert found["kernels"] == {"dense FP32": len(found["weights"])}
    by_role = {weight["role"] for weight in found["weights"]}
    assert {"patch_embed", "qkv", "proj", "fc1", "fc2", "head"} <= by_role
    for weight in found["weights"]:
        assert weight["patterns"] == []
        assert any("FP32 has no sparse kernel" in o["text"] for o in weight["obstacles"])


def test_inspect_sees_a_pattern_and_what_is_still_missing(model: Path) -> None:
    found = json.loads(call("inspect", edited(model, sparse), "--json", "-").out)
    blocks = [weight for weight in found["weights"] if weight["block"] is not None]
    assert blocks
    for weight in blocks:
        assert weight["patterns"] == ["2:4", "4:8"]
        assert weight["zeros"] == 0.5
        assert weight["kernel"] == "dense FP32"
        assert not any("not 2:4" in o["text"] for o in weight["obstacles"])


def test_inspect_names_operators_that_tensorrt_lacks(model: Path) -> None:
    proto = onnx.load(model)
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    proto.opset_import.append(helper.make_opsetid("ours", 1))
    last = proto.graph.output[0].name
    next(n for n in proto.graph.node if last in n.output).output[0] = "before"
    proto.graph.node.append(helper.make_node("QuickGelu", ["before"], ["between"], domain="com.microsoft"))
    proto.graph.node.append(helper.make_node("Glow", ["between"], [last], domain="ours"))
    onnx.save(proto, model)
    found = json.loads(call("inspect", model, "--json", "-").out)
    assert found["operators"] == {"com.microsoft.QuickGelu": 1, "ours.Glow": 1}
    assert [text.partition("; ")[2] for text in found["advice"][:2]] == [
        "apply writes them in ONNX's own first (canonical)",
        "it needs plugins for them",
    ]


def test_inspect_says_where_a_file_is_quantised_as_tensorrt_does_not_take_it(model: Path) -> None:
    written = model.with_name("int8.onnx")
    call("apply", model, "-p", "qdq-int8", "-o", written, "--samples", "2")
    proto = onnx.load(written)
    pair = next(n for n in proto.graph.node if n.op_type == "DequantizeLinear")
    zero = next(t for t in proto.graph.initializer if t.name == pair.input[2])
    zero.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(zero) + np.int8(3), zero.name))
    onnx.save(proto, written)
    found = json.loads(call("inspect", written, "--json", "-").out)
    assert "is not zero" in found["illegal"]
    assert found["advice"] == [
        f"quantised as TensorRT does not take it: {found['illegal']}; start from the float model"
    ]
    assert set(found["kernels"]) == {"onnxruntime only"} and not any(w["eligible"] for w in found["weights"])
    lines = call("inspect", written).out.splitlines()
    assert f"TensorRT can run none of the {len(found['weights'])} weights" in " ".join(" ".join(lines).split())
    assert lines[-2] == "next, with the float model that it was made of:"
    assert lines[-1].startswith("  gpusq-onnx plan ") and lines[-1].endswith(" float.onnx")


def test_inspect_in_full_prints_one_line_a_weight(model: Path) -> None:
    lines = call("inspect", model, "--full").out.splitlines()
    count = len(json.loads(call("inspect", model, "--json", "-").out)["weights"])
    assert len([line for line in lines if " FP32 " in line and "dense" in line]) >= count
    assert lines[-2].startswith(f"{count} weights, opset 20")
    assert lines[-1].startswith("for sparse kernels (12 weights): apply --passes 'prune24,")  # not the head


def test_inspect_says_the_files_own_opset() -> None:
    assert json.loads(call("inspect", ASSETS / "digits_vit_legacy17.onnx", "--json", "-").out)["opset"] == 17


def test_advice_names_only_what_is_missing(model: Path) -> None:
    """Of a pruned model the dense head alone is not 2:4: what it lacks is a type with sparse kernels."""
    pruned = model.with_name("pruned.onnx")
    assert call("apply", "-p", "prune24{method=magnitude}", "-o", pruned, model, "-q").code == 0
    advice = call("inspect", pruned, "--full").out.splitlines()
    (line,) = [line for line in advice if line.startswith("for sparse kernels")]
    assert "prune24" not in line and "qdq-int8{profile=sparse-int8}" in line


def test_check_of_equal_models(model: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    outcome = call(
        "check", model, ASSETS / "digits_vit_legacy17.onnx", "--data", LABELLED, "--min-agreement", "1",
        "--min-cosine", "0.999", "--max-top1-drop", "0", "--min-top1", "0.9", "--report", report,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "met" in outcome.out
    written = json.loads(report.read_text())
    assert written["passed"] is True
    assert written["comparison"]["top1_agreement"] == 1.0
    assert written["comparison"]["candidate_metrics"]["top1"] > 0.9
    assert written["data"]["sha256"]
    words = report.with_suffix(".md").read_text()
    assert words.startswith(f"# {ASSETS / 'digits_vit_legacy17.onnx'} against ") and "| top-1 agreement |" in words


@pytest.mark.parametrize(
    "gate", [["--min-agreement", "0.9"], ["--max-top1-drop", "5"], ["--min-top1", "0.9"], ["--min-cosine", "0.9"]]
)
def test_a_gate_that_is_not_met_exits_1(model: Path, gate: list[str]) -> None:
    broken = edited(model, lambda name, w: -w)
    outcome = call("check", model, broken, "--data", LABELLED, *gate, "--json", "-")
    assert outcome.code == 1
    assert outcome.err.startswith("gate failed: ")
    assert json.loads(outcome.out)["passed"] is False


def test_without_data_check_says_so(model: Path) -> None:
    outcome = call("check", model, model, "--samples", "4", "--json", "-")
    assert outcome.code == 0, outcome.err
    assert "synthetic" in outcome.err
    assert json.loads(outcome.out)["data"]["kind"] == "synthetic"


def test_a_gate_on_accuracy_without_labels_exits_2(model: Path, tmp_path: Path) -> None:
    unlabelled = tmp_path / "images.npz"
    with np.load(IMAGES) as arrays:
        np.savez(unlabelled, pixel_values=arrays["pixel_values"][:8])
    outcome = call("check", model, model, "--data", unlabelled, "--min-top1", "0.5")
    assert outcome.code == 2
    assert "labels" in outcome.err


def test_data_that_does_not_fit_exits_3(model: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.npy"
    np.save(wrong, np.zeros((4, 3, 8, 8), np.float32))
    assert call("check", model, model, "--data", wrong).code == 3


def test_quiet_prints_nothing(model: Path) -> None:
    outcome = call("check", model, model, "--data", IMAGES, "--samples", "4", "--quiet")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
