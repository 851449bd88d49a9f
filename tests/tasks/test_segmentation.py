"""Mean IoU and pixel accuracy, against counts by hand."""

import numpy as np
import pytest

from gpusq_onnx.errors import UnsupportedDataError, UnsupportedModelError
from gpusq_onnx.tasks.segmentation import IGNORED, Segmentation


def logits_of(classes: np.ndarray, count: int) -> np.ndarray:
    """Logits [N, C, H, W] whose best classes these are."""
    return np.moveaxis(np.eye(count, dtype=np.float32)[classes], -1, 1)


def test_counted_by_hand() -> None:
    """Class 0: 3 of 5 in either; class 1: 2 of 4; class 2 is found where no class is given, and counts nowhere."""
    maps = np.array([[[0, 0, 0], [1, 1, IGNORED]], [[0, 1, IGNORED], [IGNORED] * 3]], np.uint8)
    found = np.array([[[0, 0, 0], [1, 0, 1]], [[1, 1, 2], [2] * 3]])
    judge = Segmentation()
    judge.update({"out": logits_of(found, 3)[:1]}, maps[:1])
    judge.update({"out": logits_of(found, 3)[1:]}, maps[1:])
    right_0, either_0, right_1, either_1 = 3, 5, 2, 4
    assert judge.result() == {
        "mIoU": pytest.approx((right_0 / either_0 + right_1 / either_1) / 2),
        "aAcc": pytest.approx(5 / 7),
        "n": 2,
    }


def test_as_torch_enlarges() -> None:
    """Bilinear with pixels as areas, edges kept: align_corners=False."""
    torch = pytest.importorskip("torch")
    generator = np.random.default_rng(0)
    small = generator.standard_normal((2, 5, 4, 6)).astype(np.float32)
    wide = torch.nn.functional.interpolate(torch.from_numpy(small), (16, 18), mode="bilinear").numpy()
    maps = wide.argmax(axis=1).astype(np.uint8)
    judge = Segmentation()
    judge.update({"out": small}, maps)
    assert judge.result()["aAcc"] == 1


def test_the_output_as_large_as_the_image_is_judged() -> None:
    classes = np.array([[[0, 1], [1, 0]]])
    outputs = {"auxiliary": logits_of(1 - classes, 2).repeat(2, axis=2), "out": logits_of(classes, 2)}
    judge = Segmentation()
    judge.update(outputs, classes.astype(np.uint8))
    assert judge.result()["mIoU"] == 1


def test_what_cannot_be_judged() -> None:
    maps = np.full((1, 2, 2), 3, np.uint8)
    with pytest.raises(UnsupportedDataError, match="class 3 of a label map"):
        Segmentation().update({"out": np.zeros((1, 3, 2, 2), np.float32)}, maps)
    with pytest.raises(UnsupportedModelError, match="no output has class logits"):
        Segmentation().update({"out": np.zeros((1, 3), np.float32)}, maps)
    empty = Segmentation()
    empty.update({"out": np.zeros((1, 3, 2, 2), np.float32)}, np.full((1, 2, 2), IGNORED, np.uint8))
    with pytest.raises(UnsupportedDataError, match="no pixel"):
        empty.result()
