"""`check --masks` on a segmenter of grey levels: two classes, apart at one half or at another level."""

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import call
from onnx import TensorProto, helper
from PIL import Image
from small_models import saved


def segmenter(path: Path, level: float) -> Path:
    """Images in; out the logits of class 0 (0) and class 1 (the grey level above `level`), at half the size."""
    constants = {"level": np.float32(level), "zero": np.float32(0), "kernel": np.ones((1, 3, 2, 2), np.float32) / 12}
    nodes = [
        helper.make_node("Conv", ["images", "kernel"], ["grey"], strides=[2, 2]),
        helper.make_node("Sub", ["grey", "level"], ["bright"]),
        helper.make_node("Mul", ["bright", "zero"], ["dark"]),
        helper.make_node("Concat", ["dark", "bright"], ["logits"], axis=1),
    ]
    return saved(
        path,
        nodes,
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 2, 4, 4])],
        constants,
    )


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    """Two images, dark above (but for a grey corner in one) and white below, and their label maps."""
    pytest.importorskip("sklearn")
    for folder in ("images", "maps"):
        (tmp_path / folder).mkdir()
    for number, corner in enumerate((0, 100)):
        classes = np.repeat(np.uint8([[0], [1]]), 8, axis=1).repeat(4, axis=0)
        grey = classes * np.uint8(255)
        grey[:4, :4] = corner
        Image.fromarray(grey).convert("RGB").save(tmp_path / "images" / f"{number}.jpg", quality=100, subsampling=0)
        Image.fromarray(classes).save(tmp_path / "maps" / f"{number}.png")
    images = ["--data", f"{tmp_path / 'images'}", "--fit", "stretch", "--mean", "0", "--std", "1"]
    return [*images, "--masks", f"{tmp_path / 'maps'}"]


def test_mean_iou_is_told_and_gated(tmp_path: Path, data: list[str]) -> None:
    """At level 0.3 the grey corner, 16 of 128 pixels, is taken for class 1."""
    good, poor = segmenter(tmp_path / "good.onnx", 0.5), segmenter(tmp_path / "poor.onnx", 0.3)
    found = json.loads(call("check", good, poor, *data, "--json", "-").out)["comparison"]
    assert found["reference_metrics"]["n"] == 2
    before, after = found["reference_metrics"]["mIoU"], found["candidate_metrics"]["mIoU"]
    assert before > 0.95 > after
    assert found["candidate_metrics"]["aAcc"] == pytest.approx(1 - 16 / 128, abs=0.05)
    assert found["top1_agreement"] == pytest.approx(1 - 16 / 128, abs=0.05)
    assert found["top5_agreement"] is None
    reported = call("check", good, poor, *data, "--max-miou-drop", "40", "--min-miou", "0.6", "--min-agreement", "0.8")
    assert reported.code == 0
    assert "\nmean IoU " in reported.out
    missed = call("check", good, poor, *data, "--max-miou-drop", "2")
    assert missed.code == 1
    assert "mean IoU falls by" in missed.err


def test_a_gate_without_label_maps_exits_2(tmp_path: Path, data: list[str]) -> None:
    model = segmenter(tmp_path / "m.onnx", 0.5)
    refused = call("check", model, model, *data[:-2], "--min-miou", "0.1")
    assert refused.code == 2
    assert "--masks" in refused.err


def test_maps_that_count_from_1_exit_3_or_are_reduced(tmp_path: Path, data: list[str]) -> None:
    model = segmenter(tmp_path / "m.onnx", 0.5)
    for path in (tmp_path / "maps").iterdir():
        Image.fromarray(np.asarray(Image.open(path)) + np.uint8(1)).save(path)
    refused = call("check", model, model, *data)
    assert refused.code == 3
    assert "--reduce-zero-label" in refused.err
    reduced = call("check", model, model, *data, "--reduce-zero-label", "--min-miou", "0.95")
    assert reduced.code == 0
