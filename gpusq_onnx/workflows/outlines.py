"""The outlines of the objects that a detector finds: instance masks, for the pictures of `cam`.

What the model gives at its end is read (`tasks.detectors`), run by onnxruntime, Q and DQ as written. The outline of a
box is that of the detection whose box overlaps it most, where that is half or more: what a map explains may be a box
from before the model's selection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.data import encode
from gpusq_onnx.errors import UnsupportedModelError
from gpusq_onnx.graph.model import Model
from gpusq_onnx.runtime.ort import Session
from gpusq_onnx.tasks.boxes import overlaps
from gpusq_onnx.tasks.detectors import DetectionReader, Found

_SAME = 0.5  # intersection over union of two boxes of one object

Outline = NDArray[np.bool_]


class Outlines:
    """Instance masks of one model.

    Args:
        path, model: the file, and what is in it.
        size: height and width of its image input.
    """

    def __init__(self, path: Path, model: Model, size: tuple[int, int]) -> None:
        wide = len(model.outputs()) > 1 and any(len(spec.shape) == 4 for spec in model.outputs())
        self._session = Session(path, exact_qdq=True) if wide else None
        self._read = DetectionReader(size)

    def find(self, feed: Mapping[str, NDArray[Any]], boxes: Sequence[tuple[float, ...] | None]) -> list[Outline | None]:
        """One for each box, x0, y0, x1, y1 as shares of the image: bool[h, w] over the image; None where there is none.

        Args:
            feed: one image, and its size, as rows [1, ...].
        """
        found = self._found(feed)
        if found is None or found.masks is None:
            return [None] * len(boxes)
        return [None if box is None else _of(found, np.array(box)) for box in boxes]

    def _found(self, feed: Mapping[str, NDArray[Any]]) -> Found | None:
        if self._session is None:
            return None
        rows = self._session.fixed_batch or 1
        outputs = self._session.run({name: np.repeat(value, rows, axis=0) for name, value in feed.items()})
        try:
            found = self._read(outputs)
        except UnsupportedModelError:  # no detector, such as a segmenter
            self._session = None
            return None
        return found if found.relative else None


def _of(found: Found, box: NDArray[np.float64]) -> Outline | None:
    if not found.boxes.shape[1]:
        return None
    shared = overlaps(found.boxes[0], box)
    best = int(shared.argmax())
    assert found.masks is not None
    return found.masks[0, best] > found.inked if shared[best] >= _SAME else None


def over(outline: Outline | None, size: tuple[int, int]) -> Outline | None:
    """The outline over an image of (height, width)."""
    return None if outline is None else encode.enlarged(outline.astype(np.float32), size) > 0.5


def agreement(one: Outline, other: Outline) -> float:
    """Intersection over union of two outlines; 1 of two empty ones."""
    union = int((one | other).sum())
    return int((one & other).sum()) / union if union else 1.0
