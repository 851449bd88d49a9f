"""Object detection: COCO's average precision of boxes, from what detectors of the DETR family give.

Two forms of outputs are read, told apart by their shapes:

    finished    labels integer[N, Q], scores[N, Q], boxes[N, Q, 4] as x0, y0, x1, y1 in pixels of the image as it was
                (the exports of RT-DETR, D-FINE, DEIM, which take the images' sizes)
    raw         logits[N, Q, C] and boxes[N, Q, 4] as centre x, centre y, width, height, 0..1 of the image (DETR)

Raw logits become scores by a sigmoid per class, the BEST pairs of query and class of an image kept; or, where
`kinds.per_class` sees none, by a softmax whose last class is "nothing", one class a query.

A class is the category's place in the order of ids where the model has as many classes as there are categories, and the
category's id where it has more (DETR's 91 classes of COCO's 80). Average precision is faster-coco-eval's, over IoU 0.50
to 0.95, over all sizes. Limits: boxes only; images must go in whole (fit=stretch) for boxes to be where they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.errors import EnvironmentLacking, UnsupportedDataError, UnsupportedModelError
from gpusq_onnx.tasks.kinds import output_kinds, per_class

BEST = 100  # detections an image that COCO counts


@dataclass(frozen=True)
class Found:
    """The detections of a batch, K an image.

    Attributes:
        classes, scores, boxes: int64[N, K], float64[N, K], float64[N, K, 4] as x0, y0, x1, y1.
        known: how many classes the model has; None where the outputs do not tell.
        relative: boxes are 0..1 of the image, else pixels.
    """

    classes: NDArray[np.int64]
    scores: NDArray[np.float64]
    boxes: NDArray[np.float64]
    known: int | None
    relative: bool


class Detection:
    """Streaming average precision of one model.

    Args:
        annotations: of boxes, as `data.coco.read_annotations` gives them.

    Raises:
        EnvironmentLacking: faster-coco-eval is not installed.
    """

    def __init__(self, annotations: Mapping[str, Any]) -> None:
        try:
            from faster_coco_eval import COCO
        except ImportError:
            raise EnvironmentLacking(
                "average precision needs faster-coco-eval, which is not installed",
                hint="pip install 'gpusq-onnx[metrics]'",
            ) from None
        self._truth = COCO({**annotations, "annotations": list(_whole(annotations["annotations"]))})
        self._categories = np.array(sorted(self._truth.getCatIds()), np.int64)
        self._sigmoid: bool | None = None  # of raw logits; the first batch tells
        self._rows: list[dict[str, Any]] = []
        self._images: list[int] = []

    def update(self, outputs: Mapping[str, NDArray[Any]], images: NDArray[np.int64]) -> None:
        """Take in one batch: the model's outputs by name, and the images' ids in the annotations, int64[N].

        Raises UnsupportedModelError when the outputs have neither form, UnsupportedDataError when they have classes
        that are no categories.
        """
        found = _finished(outputs) or self._raw(outputs)
        ids = self._ids(found)
        for n, image in enumerate(images.tolist()):
            known = self._truth.imgs[image]
            scale = np.tile([known["width"], known["height"]], 2) if found.relative else np.ones(4)
            for k in np.argsort(-found.scores[n], kind="stable")[:BEST]:
                left, top, right, bottom = box = found.boxes[n, k] * scale
                if np.isfinite(box).all() and np.isfinite(found.scores[n, k]):
                    place, score = [left, top, right - left, bottom - top], found.scores[n, k]
                    row = {"image_id": image, "category_id": int(ids[n, k]), "bbox": place, "score": float(score)}
                    self._rows.append(row)
            self._images.append(image)

    def result(self) -> dict[str, float | int]:
        """{"AP", "AP50", "AP75": 0..1, "n": images}; needs one image at least."""
        from faster_coco_eval import COCOeval_faster

        if not self._images:
            raise ValueError("no images were counted")
        judged = COCOeval_faster(self._truth, self._truth.loadRes(self._rows), "bbox")
        judged.params.imgIds = sorted(self._images)
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
        found = {name: max(0.0, float(v)) for name, v in zip(("AP", "AP50", "AP75"), judged.stats[:3], strict=True)}
        return {**found, "n": len(self._images)}

    def _ids(self, found: Found) -> NDArray[np.int64]:
        """Category ids of the classes."""
        count = len(self._categories)
        if found.known is not None and found.known > count:
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

    def _raw(self, outputs: Mapping[str, NDArray[Any]]) -> Found:
        kinds = output_kinds({name: x.shape for name, x in outputs.items()})
        given = ([outputs[name] for name, kind in kinds.items() if kind == want] for want in ("queries", "boxes"))
        logits, boxes = given
        if not (len(logits) == len(boxes) == 1):
            raise UnsupportedModelError(
                "the outputs are not those of a detector that can be scored",
                expected="labels [N, Q], scores [N, Q] and boxes [N, Q, 4]; or logits [N, Q, C] and boxes [N, Q, 4]",
                found=", ".join(f"{name} {list(x.shape)}" for name, x in outputs.items()),
                hint="leave --annotations out to compare the outputs as they are",
            )
        centre, extent = np.split(boxes[0].astype(np.float64), 2, axis=2)
        corners = np.concatenate([centre - extent / 2, centre + extent / 2], axis=2)
        values = logits[0].astype(np.float64)
        if self._sigmoid is None:
            self._sigmoid = per_class(values)
        classes, scores, query = _sigmoid(values) if self._sigmoid else _softmax(values)
        known = values.shape[2] - (not self._sigmoid)
        return Found(classes, scores, np.take_along_axis(corners, query[..., None], axis=1), known, relative=True)


def _whole(boxes: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Annotations with what converters leave out: one object each, as large as its box; ids from 1, 0 means none."""
    for number, box in enumerate(boxes, 1):
        yield {"iscrowd": 0, "area": box["bbox"][2] * box["bbox"][3], **box, "id": number}


def _finished(outputs: Mapping[str, NDArray[Any]]) -> Found | None:
    boxes = [x for x in outputs.values() if x.ndim == 3 and x.shape[2] == 4]
    labels = [x for x in outputs.values() if x.ndim == 2 and x.dtype.kind in "iu"]
    scores = [x for x in outputs.values() if x.ndim == 2 and x.dtype.kind == "f"]
    if not (len(boxes) == len(labels) == len(scores) == 1):
        return None
    wide = scores[0].astype(np.float64), boxes[0].astype(np.float64)
    return Found(labels[0].astype(np.int64), *wide, known=None, relative=False)


Picked = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]
"""Classes, scores and query of K detections an image, each [N, K]."""


def _softmax(logits: NDArray[np.float64]) -> Picked:
    """The best class of each query, the last one, "nothing", left out."""
    powers = np.exp(logits - logits.max(axis=2, keepdims=True))
    scores = (powers / powers.sum(axis=2, keepdims=True))[..., :-1]
    queries = np.broadcast_to(np.arange(logits.shape[1]), logits.shape[:2])
    return scores.argmax(axis=2), scores.max(axis=2), queries


def _sigmoid(logits: NDArray[np.float64]) -> Picked:
    """The BEST pairs of query and class."""
    classes = logits.shape[2]
    flat = (1 / (1 + np.exp(-logits))).reshape(len(logits), -1)
    best = np.argsort(-flat, axis=1, kind="stable")[:, :BEST]
    return best % classes, np.take_along_axis(flat, best, axis=1), best // classes
