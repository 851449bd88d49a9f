"""Object detection and instance segmentation: COCO's average precision of boxes and masks.

    AP, AP50, AP75                 of boxes, over IoU 0.50 to 0.95, at 0.50, at 0.75; all sizes
    mask_AP, mask_AP50, mask_AP75  the same of masks, where the model gives some and the annotations have outlines

A class is the category's place in the order of ids where the model has as many classes as there are categories, and the
category's id where it has more (DETR's 91 classes of COCO's 80) or gives ids. What models give: `detectors`. Counting
is faster-coco-eval's. Limits: images must go in whole (fit=stretch) for boxes and masks to be where they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.errors import EnvironmentLacking, UnsupportedDataError
from gpusq_onnx.tasks.detectors import BEST, DetectionReader, Found, Outputs
from gpusq_onnx.tasks.pixels import resized


class Detection:
    """Streaming average precision of one model.

    Args:
        annotations: of boxes, as `data.coco.read_annotations` gives them.
        size: height and width of the model's image input.

    Raises:
        EnvironmentLacking: faster-coco-eval is not installed.
    """

    def __init__(self, annotations: Mapping[str, Any], size: tuple[int, int]) -> None:
        try:
            from faster_coco_eval import COCO
        except ImportError:
            raise EnvironmentLacking(
                "average precision needs faster-coco-eval, which is not installed",
                hint="pip install 'gpusq-onnx[metrics]'",
            ) from None
        self._truth = COCO({**annotations, "annotations": list(_whole(annotations["annotations"]))})
        self._outlined = all("segmentation" in row for row in annotations["annotations"])
        self._categories = np.array(sorted(self._truth.getCatIds()), np.int64)
        self._read = DetectionReader(size)
        self._boxes: list[dict[str, Any]] = []
        self._masks: list[dict[str, Any]] | None = None  # None: no batch had any
        self._images: list[int] = []

    def update(self, outputs: Outputs, images: NDArray[np.int64]) -> None:
        """Take in one batch: the model's outputs by name, and the images' ids in the annotations, int64[N].

        Raises UnsupportedModelError when the outputs have no known form, UnsupportedDataError when they have classes
        that are no categories.
        """
        found = self._read(outputs)
        ids = self._ids(found)
        for n, image in enumerate(images.tolist()):
            known = self._truth.imgs[image]
            scale = np.tile([known["width"], known["height"]], 2) if found.relative else np.ones(4)
            finite = np.isfinite(found.boxes[n]).all(axis=-1) & np.isfinite(found.scores[n])
            best = [int(k) for k in np.argsort(-found.scores[n], kind="stable")[:BEST] if finite[k]]
            reported = [
                {"image_id": image, "category_id": int(ids[n, k]), "score": float(found.scores[n, k])} for k in best
            ]
            for row, k in zip(reported, best, strict=True):
                left, top, right, bottom = found.boxes[n, k] * scale
                self._boxes.append({**row, "bbox": [left, top, right - left, bottom - top]})
            if found.masks is not None and self._outlined:
                outlines = _outlines(found.masks[n, best], (known["height"], known["width"]), found.inked)
                rows = [{**row, "segmentation": outline} for row, outline in zip(reported, outlines, strict=True)]
                self._masks = [] if self._masks is None else self._masks
                self._masks += rows
            self._images.append(image)

    def result(self) -> dict[str, float | int]:
        """{"AP", "AP50", "AP75": 0..1, "n": images}, and the masks' where there are some; needs one image at least."""
        if not self._images:
            raise ValueError("no images were counted")
        found = self._judged(self._boxes, "bbox", "")
        if self._masks is not None:
            found |= self._judged(self._masks, "segm", "mask_")
        return {**found, "n": len(self._images)}

    def _judged(self, rows: list[dict[str, Any]], kind: str, prefix: str) -> dict[str, float | int]:
        from faster_coco_eval import COCOeval_faster

        given = self._truth.loadRes([dict(row) for row in rows])  # it writes into them
        judged = COCOeval_faster(self._truth, given, kind)
        judged.params.imgIds = sorted(self._images)
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
        names = (f"{prefix}AP", f"{prefix}AP50", f"{prefix}AP75")
        return {name: max(0.0, float(v)) for name, v in zip(names, judged.stats[:3], strict=True)}

    def _ids(self, found: Found) -> NDArray[np.int64]:
        """Category ids of the classes."""
        count = len(self._categories)
        if found.named or (found.known is not None and found.known > count):
            return found.classes  # an id that is no category's matches no box
        highest = int(found.classes.max(initial=0))
        if highest >= count:
            raise UnsupportedDataError(
                f"the model's class {highest} is no category of the annotations",
                expected=f"0 to {count - 1}, in the order of the categories' ids",
                found=f"{count} categories",
                hint="are these annotations of the classes that the model was trained with?",
            )
        return self._categories[found.classes]


def _outlines(masks: NDArray[Any], size: tuple[int, int], inked: float) -> list[dict[str, Any]]:
    """Masks [K, h, w] as run lengths over an image of `size`."""
    from faster_coco_eval import mask

    whole = [resized(one[None], size)[0] > inked for one in masks]
    return [mask.encode(np.asfortranarray(one, np.uint8)) for one in whole]


def _whole(boxes: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Annotations with what converters leave out: one object each, as large as its box; ids from 1, 0 means none."""
    for number, box in enumerate(boxes, 1):
        yield {"iscrowd": 0, "area": box["bbox"][2] * box["bbox"][3], **box, "id": number}
