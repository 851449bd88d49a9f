"""Average precision on two images and three boxes, where it can be worked out by hand."""

import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gpusq_onnx.errors import EnvironmentLacking, UnsupportedDataError, UnsupportedModelError
from gpusq_onnx.tasks.detection import Detection

IDS = np.array([10, 20])
SIZES = np.array([[100, 50], [40, 80]])
BOXES = np.array([[[10, 10, 30, 40], [50, 5, 90, 45]], [[0, 0, 40, 40], [0, 0, 0, 0]]], np.float32)
PLACES = np.array([[0, 1], [1, 0]])  # of the categories in the order of their ids
CATEGORIES = [5, 3]  # not in order
INPUT = (64, 32)  # height and width of what the model sees


@pytest.fixture
def truth() -> dict[str, Any]:
    pytest.importorskip("faster_coco_eval")
    images = [
        {"id": i, "file_name": f"{i}.jpg", "width": w, "height": h}
        for i, (w, h) in zip(IDS.tolist(), SIZES.tolist(), strict=True)
    ]
    boxes = []
    for image in range(2):
        for box, place in zip(BOXES[image].tolist(), PLACES[image], strict=True):
            x0, y0, x1, y1 = box
            if x1 > x0:
                own = {"image_id": int(IDS[image]), "category_id": sorted(CATEGORIES)[place]}
                boxes.append({**own, "bbox": [x0, y0, x1 - x0, y1 - y0]})
    return {"images": images, "annotations": boxes, "categories": [{"id": c, "name": str(c)} for c in CATEGORIES]}


def finished(scores: Any = ((0.9, 0.8), (0.7, 0.0)), labels: Any = PLACES, boxes: Any = BOXES) -> dict[str, Any]:
    scores, labels = np.array(scores, np.float32), np.array(labels)
    return {"labels": labels, "boxes": np.array(boxes, np.float32), "scores": scores}


def ap(truth: dict[str, Any], outputs: dict[str, Any]) -> dict[str, float | int]:
    judge = Detection(truth, INPUT)
    for row in range(2):
        judge.update({name: x[row : row + 1] for name, x in outputs.items()}, IDS[row : row + 1])
    return judge.result()


def raw(classes: int, sigmoid: bool, places: NDArray[np.int64]) -> dict[str, Any]:
    """What a detector says that is right: six queries, of which the first ones find something."""
    logits = np.full((2, 6, classes), -8.0, np.float32)
    boxes = np.full((2, 6, 4), 0.5, np.float32)
    if not sigmoid:
        logits[..., -1] = 8
    for image in range(2):
        for query in range(2 - image):
            logits[image, query] = -8
            logits[image, query, places[image, query]] = 8
            corners = (BOXES[image, query].reshape(2, 2) / SIZES[image]).astype(np.float32)
            boxes[image, query] = [*corners.mean(0), *(corners[1] - corners[0])]
    return {"pred_logits": logits, "pred_boxes": boxes}


def test_what_is_right_has_1_and_batches_do_not_matter(truth: dict[str, Any]) -> None:
    assert ap(truth, finished()) == {"AP": pytest.approx(1), "AP50": pytest.approx(1), "AP75": pytest.approx(1), "n": 2}
    whole = Detection(truth, INPUT)
    whole.update(finished(), IDS)
    assert whole.result() == ap(truth, finished())


def test_a_wrong_box_in_front_halves_its_class(truth: dict[str, Any]) -> None:
    """Category 3 has one box; a surer one beside it leaves a precision of 1/2 at every recall. Category 5 stays."""
    labels = PLACES.copy()
    outputs = finished(scores=((0.9, 0.8), (0.7, 0.95)), labels=labels)
    outputs["boxes"] = BOXES.copy()
    outputs["boxes"][1, 1] = (20, 60, 30, 70)
    assert ap(truth, outputs)["AP"] == pytest.approx((0.5 + 1) / 2)


def test_a_box_that_is_a_little_off_counts_where_the_threshold_is_low(truth: dict[str, Any]) -> None:
    boxes = BOXES.copy()
    boxes[0, 0] = (10, 10, 30, 31)  # IoU 0.7
    found = ap(truth, finished(boxes=boxes))
    assert found["AP50"] == pytest.approx(1)
    assert found["AP75"] == pytest.approx(0.5)


@pytest.mark.parametrize("sigmoid", [True, False])
@pytest.mark.parametrize("numbered", ["by place", "by id"])
def test_raw_outputs_are_read_too(truth: dict[str, Any], sigmoid: bool, numbered: str) -> None:
    places = PLACES if numbered == "by place" else np.array(sorted(CATEGORIES))[PLACES]
    classes = (2 if numbered == "by place" else 6) + (not sigmoid)
    assert ap(truth, raw(classes, sigmoid, places))["AP"] == pytest.approx(1)


def joint() -> dict[str, Any]:
    """MMDeploy's form: in pixels of the input, the score after each box."""
    inside = BOXES / np.tile(SIZES, 2)[:, None] * np.tile(INPUT[::-1], 2)
    scores = np.array([[0.9, 0.8], [0.7, 0.0]], np.float32)
    return {"dets": np.concatenate([inside, scores[..., None]], axis=2).astype(np.float32), "labels": PLACES}


def listed(image: int) -> dict[str, Any]:
    """torchvision's form: of one image, classes by id, masks over the input."""
    given = joint()["dets"][image, : 2 - image]
    masks = np.zeros((len(given), 1, *INPUT), np.float32)
    for mask, (x0, y0, x1, y1) in zip(masks[:, 0], np.rint(given[:, :4]).astype(int), strict=True):
        mask[y0:y1, x0:x1] = 0.8
    labels = np.array(sorted(CATEGORIES))[PLACES[image, : len(given)]]
    return {"out0": given[:, :4], "out1": labels, "out2": given[:, 4], "out3": masks}


def test_boxes_with_their_scores_are_in_pixels_of_the_input(truth: dict[str, Any]) -> None:
    assert ap(truth, joint())["AP"] == pytest.approx(1)


@pytest.fixture
def outlined(truth: dict[str, Any]) -> dict[str, Any]:
    """The same, each object as large as its box."""
    for row in truth["annotations"]:
        x, y, w, h = row["bbox"]
        row["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    return truth


@pytest.mark.parametrize("sigmoid", [True, False])
@pytest.mark.parametrize("levels", [(-6.0, 6.0), (0.1, 0.9)], ids=["logits", "likelihoods"])
def test_masks_of_queries(outlined: dict[str, Any], sigmoid: bool, levels: tuple[float, float]) -> None:
    """At a quarter of the image's size: half a pixel of theirs is two of the image, so the AP is not whole."""
    outputs = raw(2 + (not sigmoid), sigmoid, PLACES)
    masks = np.full((2, 6, 20, 20), levels[0], np.float32)
    for image in range(2):
        for query in range(2 - image):
            x0, y0, x1, y1 = np.rint(BOXES[image, query] / np.tile(SIZES[image], 2) * 20).astype(int)
            masks[image, query, y0:y1, x0:x1] = levels[1]
    found = ap(outlined, {**outputs, "pred_masks": masks})
    assert found["AP"] == pytest.approx(1)
    assert found["mask_AP50"] == pytest.approx(1)
    assert found["mask_AP"] > 0.7
    shuffled = ap(outlined, {**outputs, "pred_masks": masks[:, ::-1]})
    assert shuffled["AP"] == pytest.approx(1)
    assert shuffled["mask_AP50"] < 0.3


def test_lists_of_an_image_s_detections_and_their_masks(outlined: dict[str, Any]) -> None:
    judge = Detection(outlined, INPUT)
    for row in range(2):
        judge.update(listed(row), IDS[row : row + 1])
    found = judge.result()
    assert found["AP"] == pytest.approx(1)
    assert found["mask_AP75"] == pytest.approx(1)
    assert found["mask_AP"] > 0.7  # whole pixels of the input are several of the image
    masks = listed(0)["out3"]
    masks[:, :, INPUT[0] // 2 :] = 0
    poor = Detection(outlined, INPUT)
    poor.update({**listed(0), "out3": masks}, IDS[:1])
    assert poor.result()["AP"] > 0.4
    assert poor.result()["mask_AP75"] < 0.3


def test_masks_without_outlines_in_the_annotations_are_left_out(truth: dict[str, Any]) -> None:
    judge = Detection(truth, INPUT)
    judge.update(listed(0), IDS[:1])
    assert set(judge.result()) == {"AP", "AP50", "AP75", "n"}


def test_an_image_without_detections(truth: dict[str, Any]) -> None:
    judge = Detection(truth, INPUT)
    judge.update({name: x[:0] for name, x in listed(0).items()}, IDS[:1])
    judge.update(listed(1), IDS[1:])
    assert judge.result()["AP"] == pytest.approx((0 + 51 / 101) / 2)  # one category of two, one box of two


def test_no_detections_at_all_are_0(truth: dict[str, Any]) -> None:
    assert ap(truth, finished(scores=np.full((2, 2), np.nan)))["AP"] == 0


def test_classes_that_are_no_categories_are_refused(truth: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedDataError, match="class 7 is no category"):
        ap(truth, finished(labels=np.full((2, 2), 7)))


def test_other_outputs_are_refused_by_name(truth: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError, match=r"logits \[2, 10\]"):
        Detection(truth, INPUT).update({"logits": np.zeros((2, 10), np.float32)}, IDS)


def test_nothing_counted_is_an_error(truth: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no images"):
        Detection(truth, INPUT).result()


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(EnvironmentLacking, match=r"gpusq-onnx\[metrics\]"):
        Detection({}, INPUT)
