"""`check --annotations` on a detector that finds one box per image: as large as it is, or smaller."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from command_line import LABELLED, MODEL, call
from onnx import TensorProto, helper
from PIL import Image
from small_models import saved


def detector(path: Path, share: float) -> Path:
    """Images and their sizes in; out one box from the image's corner over `share` of each side, class 0, score 0.9."""
    count = helper.make_tensor_value_info
    constants = {"share": np.float32([share]), "one": np.int64([1]), "score": np.float32([[0.9]])}
    constants |= {"label": np.int64([[0]]), "corner": np.float32([[0, 0]]), "ones": np.float32([[1]])}
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "one"], ["column"]),
        helper.make_node("Mul", ["column", "corner"], ["nothing"]),
        helper.make_node("Cast", ["orig_target_sizes"], ["sizes"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["sizes", "share"], ["far"]),
        helper.make_node("Concat", ["nothing", "far"], ["flat"], axis=1),
        helper.make_node("Unsqueeze", ["flat", "one"], ["boxes"]),
        helper.make_node("Pow", ["column", "zero"], ["like"]),
        helper.make_node("Mul", ["like", "score"], ["scores"]),
        helper.make_node("Cast", ["like"], ["unit"], to=TensorProto.INT64),
        helper.make_node("Mul", ["unit", "label"], ["labels"]),
    ]
    constants["zero"] = np.float32([0])
    return saved(
        path,
        nodes,
        [
            count("images", TensorProto.FLOAT, ["N", 3, 8, 8]),
            count("orig_target_sizes", TensorProto.INT64, ["N", 2]),
        ],
        [
            count("labels", TensorProto.INT64, ["N", 1]),
            count("boxes", TensorProto.FLOAT, ["N", 1, 4]),
            count("scores", TensorProto.FLOAT, ["N", 1]),
        ],
        constants,
    )


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    """Three images of three sizes, each one object; the options that name them."""
    pytest.importorskip("faster_coco_eval")
    (tmp_path / "images").mkdir()
    images, boxes = [], []
    for i, (w, h) in enumerate([(40, 20), (10, 30), (64, 64)], 1):
        Image.new("RGB", (w, h), (9, 9, 9)).save(tmp_path / "images" / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": w, "height": h})
        own = {"bbox": [0, 0, w, h], "area": w * h, "iscrowd": 0}
        boxes.append({"id": i, "image_id": i, "category_id": 3, **own})
    reported = {"images": images, "annotations": boxes, "categories": [{"id": 3, "name": "cat"}]}
    (tmp_path / "boxes.json").write_text(json.dumps(reported))
    return ["--data", f"{tmp_path / 'images'}", "--fit", "stretch", "--annotations", f"{tmp_path / 'boxes.json'}"]


def test_average_precision_is_told_and_gated(tmp_path: Path, data: list[str]) -> None:
    whole, part = detector(tmp_path / "whole.onnx", 1.0), detector(tmp_path / "part.onnx", 0.9)  # IoU 0.81
    found = json.loads(call("check", whole, part, *data, "--json", "-").out)["comparison"]
    assert found["reference_metrics"] == {
        "AP": pytest.approx(1),
        "AP50": pytest.approx(1),
        "AP75": pytest.approx(1),
        "n": 3,
    }
    assert found["candidate_metrics"]["AP75"] == pytest.approx(1)
    assert found["candidate_metrics"]["AP"] == pytest.approx(0.7)  # thresholds 0.50 to 0.80 of ten
    assert found["top1_agreement"] is None
    reported = call("check", whole, part, *data, "--max-ap-drop", "31", "--min-ap", "0.69")
    assert reported.code == 0
    assert re.search(r"^AP +100\.00% +70\.00% +-30\.00 points$", reported.out, re.MULTILINE)
    missed = call("check", whole, part, *data, "--max-ap-drop", "10")
    assert missed.code == 1
    assert "AP falls by 30.00 points" in missed.err


def test_a_gate_without_boxes_exits_2_before_anything_runs(tmp_path: Path, data: list[str]) -> None:
    model = detector(tmp_path / "m.onnx", 1.0)
    refused = call("check", model, model, *data[:4], "--min-ap", "0.1")
    assert refused.code == 2
    assert "--annotations" in refused.err


def test_annotations_of_arrays_exit_2(data: list[str]) -> None:
    refused = call("check", MODEL, MODEL, "--data", LABELLED, *data[2:])
    assert refused.code == 2
    assert "folder of images" in refused.err
