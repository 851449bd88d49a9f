"""A user's desk made of what the repository carries: models, images, labels and boxes, as docs/tasks.md has them.

python -m tools.digits.desk FOLDER

    model.onnx        a ViT that reads handwritten digits, 32 pixels a side
    images/           some of its training images, for calibration
    val/              test images, a folder a class; classes.txt numbers the folders
    detector.onnx     the same ViT as a detector: one box an image, the digit its class
    scenes/           the test images without their labels, which instances.json (COCO) has
    preprocessor_config.json    how both models want an image
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

ASSETS = Path(__file__).parents[2] / "tests" / "assets"
CALIBRATION, TEST = 64, 200  # images
# Hugging Face's words for: stretched to the input, RGB from -1 to 1.
PREPROCESSOR = {"size": {"height": 32, "width": 32}, "resample": 3, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def write(folder: Path) -> None:
    """Make the desk in a folder, which is made, too."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes((ASSETS / "digits_vit.onnx").read_bytes())
    onnx.save(detector(onnx.load(ASSETS / "digits_vit.onnx")), folder / "detector.onnx")
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR), encoding="utf-8")
    (folder / "classes.txt").write_text("".join(f"digit-{digit}\n" for digit in range(10)), encoding="utf-8")
    for number, (image, _) in list(enumerate(zip(*_images("digits_train.npz"), strict=True)))[:CALIBRATION]:
        _save(image, folder / "images" / f"{number:03}.png")
    images, boxes = [], []
    for number, (image, label) in list(enumerate(zip(*_images("digits_test.npz"), strict=True)))[:TEST]:
        name, (height, width, _) = f"{number:03}.png", image.shape
        _save(image, folder / "val" / f"digit-{label}" / name)
        _save(image, folder / "scenes" / name)
        images.append({"id": number + 1, "file_name": name, "width": width, "height": height})
        box = {"bbox": [0, 0, width, height], "area": width * height, "iscrowd": 0}
        boxes.append({"id": number + 1, "image_id": number + 1, "category_id": int(label) + 1, **box})
    kinds = [{"id": digit + 1, "name": f"digit-{digit}"} for digit in range(10)]
    document = {"images": images, "annotations": boxes, "categories": kinds}
    (folder / "instances.json").write_text(json.dumps(document), encoding="utf-8")


def detector(model: onnx.ModelProto) -> onnx.ModelProto:
    """The classifier with labels, boxes and scores as outputs: the best class, over the whole image."""
    graph, logits = model.graph, model.graph.output[0].name
    constants = {"one": np.int64([1]), "none": np.float32(0)}
    graph.initializer.extend(numpy_helper.from_array(np.asarray(x), f"tail.{name}") for name, x in constants.items())
    graph.node.extend(
        [
            helper.make_node("Softmax", [logits], ["tail.shares"], axis=-1),
            helper.make_node("ReduceMax", ["tail.shares", "tail.one"], ["scores"], keepdims=1),
            helper.make_node("ArgMax", [logits], ["labels"], axis=-1, keepdims=1),
            helper.make_node("Cast", ["orig_target_sizes"], ["tail.far"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["tail.far", "tail.none"], ["tail.near"]),
            helper.make_node("Concat", ["tail.near", "tail.far"], ["tail.corners"], axis=-1),
            helper.make_node("Unsqueeze", ["tail.corners", "tail.one"], ["boxes"]),
        ]
    )
    sizes = helper.make_tensor_value_info("orig_target_sizes", TensorProto.INT64, ["batch", 2])
    graph.input.append(sizes)
    del graph.output[:]
    kinds = {
        "labels": (TensorProto.INT64, [1]),
        "boxes": (TensorProto.FLOAT, [1, 4]),
        "scores": (TensorProto.FLOAT, [1]),
    }
    graph.output.extend(helper.make_tensor_value_info(n, kind, ["batch", *shape]) for n, (kind, shape) in kinds.items())
    return model


def _images(name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    with np.load(ASSETS / name) as data:
        pixels = np.rint((data["pixel_values"] * 0.5 + 0.5) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
        return pixels, data["labels"]


def _save(image: NDArray[np.uint8], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
