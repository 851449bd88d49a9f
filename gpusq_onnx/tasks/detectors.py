"""What detectors give, in the forms that exporters write, read as classes, scores, boxes and masks.

Told apart by their shapes; Q detections an image, of which some may be nothing:

    finished    labels integer[N, Q], scores[N, Q], boxes[N, Q, 4] as x0, y0, x1, y1 in pixels of the image as it was
                (the exports of RT-DETR, D-FINE, DEIM, which take the images' sizes)
    joint       boxes and scores in one, [N, Q, 5], and labels integer[N, Q]; pixels of the model's input (MMDeploy)
    listed      boxes[Q, 4], labels integer[Q], scores[Q], and perhaps masks[Q, 1, H, W] as large as the input: one
                image, pixels of the input, labels are categories' ids (torchvision's R-CNNs)
    raw         logits[N, Q, C] and boxes[N, Q, 4] as centre x, centre y, width, height, 0..1 of the image (DETR), and
                perhaps masks[N, Q, h, w] over the image, logits or likelihoods (its panoptic form)

Raw logits become scores by a sigmoid per class, the BEST pairs of query and class of an image kept; or, where
`kinds.per_class` sees none, by a softmax whose last class is "nothing", one class a query.
Limits: masks cut out around each box (28 x 28) are not read; those of the listed form are as large as the input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.errors import UnsupportedModelError
from gpusq_onnx.tasks.kinds import output_kinds, per_class

BEST = 100  # detections an image that COCO counts
LIKELY = 0.5  # a pixel is the object's above it, as in torchvision and Detectron

Outputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Found:
    """The detections of a batch, K an image.

    Attributes:
        classes, scores, boxes: int64[N, K], float64[N, K], float64[N, K, 4] as x0, y0, x1, y1.
        relative: boxes are 0..1 of the image, else pixels of the image as it was.
        known: how many classes the model has; None where the outputs do not tell.
        named: classes are categories' ids.
        masks: over the whole image, [N, K, h, w]; None where there are none.
        inked: the value of a mask above which a pixel is the object's: 0 of logits, 1/2 of likelihoods.
    """

    classes: NDArray[np.int64]
    scores: NDArray[np.float64]
    boxes: NDArray[np.float64]
    relative: bool
    known: int | None = None
    named: bool = False
    masks: NDArray[Any] | None = None
    inked: float = LIKELY


class DetectionReader:
    """Reads the outputs of one model.

    Args:
        size: height and width of the model's image input.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self._size = size
        self._sigmoid: bool | None = None  # of raw logits; the first batch tells

    def __call__(self, outputs: Outputs) -> Found:
        """One batch. Raises UnsupportedModelError when the outputs have none of the forms."""
        found = _finished(outputs) or _joint(outputs, self._size) or _listed(outputs, self._size)
        return found or self._raw(outputs)

    def _raw(self, outputs: Outputs) -> Found:
        kinds = output_kinds({name: x.shape for name, x in outputs.items()})
        logits, boxes = ([outputs[name] for name, kind in kinds.items() if kind == k] for k in ("queries", "boxes"))
        if not (len(logits) == len(boxes) == 1):
            raise UnsupportedModelError(
                "the outputs are not those of a detector that can be scored",
                expected="labels [N, Q], scores [N, Q] and boxes [N, Q, 4]; or boxes with scores [N, Q, 5] and labels "
                "[N, Q]; or boxes [Q, 4], labels [Q] and scores [Q]; or logits [N, Q, C] and boxes [N, Q, 4]",
                found=", ".join(f"{name} {list(x.shape)}" for name, x in outputs.items()),
                hint="leave --annotations out to compare the outputs as they are",
            )
        centre, extent = np.split(boxes[0].astype(np.float64), 2, axis=2)
        corners = np.concatenate([centre - extent / 2, centre + extent / 2], axis=2)
        values = logits[0].astype(np.float64)
        if self._sigmoid is None:
            self._sigmoid = per_class(values)
        classes, scores, query = _sigmoid(values) if self._sigmoid else _softmax(values)
        picked = np.take_along_axis(corners, query[..., None], axis=1)
        known = values.shape[2] - (not self._sigmoid)
        drawn = [outputs[name] for name, kind in kinds.items() if kind == "masks"]
        if len(drawn) != 1:
            return Found(classes, scores, picked, relative=True, known=known)
        masks = np.take_along_axis(drawn[0], query[..., None, None], axis=1)
        inked = 0.0 if (masks < 0).any() else LIKELY
        return Found(classes, scores, picked, relative=True, known=known, masks=masks, inked=inked)


def _finished(outputs: Outputs) -> Found | None:
    boxes, labels, scores = _floats(outputs, 3, 4), _labels(outputs, 2), _floats(outputs, 2)
    if not (len(boxes) == len(labels) == len(scores) == 1):
        return None
    return Found(labels[0].astype(np.int64), scores[0].astype(np.float64), boxes[0].astype(np.float64), relative=False)


def _joint(outputs: Outputs, size: tuple[int, int]) -> Found | None:
    boxes, labels = _floats(outputs, 3, 5), _labels(outputs, 2)
    if not (len(boxes) == len(labels) == 1):
        return None
    wide = boxes[0].astype(np.float64)
    return Found(labels[0].astype(np.int64), wide[..., 4], wide[..., :4] / _corners(size), relative=True)


def _listed(outputs: Outputs, size: tuple[int, int]) -> Found | None:
    boxes, labels, scores = _floats(outputs, 2, 4), _labels(outputs, 1), _floats(outputs, 1)
    if not (len(boxes) == len(labels) == len(scores) == 1):
        return None
    masks = [x[None, :, 0] for x in _floats(outputs, 4) if x.shape[1:] == (1, *size)]
    return Found(
        labels[0].astype(np.int64)[None],
        scores[0].astype(np.float64)[None],
        boxes[0].astype(np.float64)[None] / _corners(size),
        relative=True,
        named=True,
        masks=masks[0] if masks else None,
    )


def _floats(outputs: Outputs, rank: int, last: int | None = None) -> list[NDArray[Any]]:
    found = [x for x in outputs.values() if x.ndim == rank and x.dtype.kind == "f"]
    return found if last is None else [x for x in found if x.shape[-1] == last]


def _labels(outputs: Outputs, rank: int) -> list[NDArray[Any]]:
    return [x for x in outputs.values() if x.ndim == rank and x.dtype.kind in "iu"]


def _corners(size: tuple[int, int]) -> NDArray[np.float64]:
    """What x0, y0, x1, y1 are divided by."""
    return np.tile(np.array(size[::-1], np.float64), 2)


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
