"""Semantic segmentation: mean intersection over union and pixel accuracy, batch by batch.

    IoU_c   pixels of class c in both over pixels of class c in either, over all images
    mIoU    mean over the classes that are in either
    aAcc    share of pixels with the right class

Logits [N, C, h, w] are enlarged (bilinear) to the label maps, the best class of each pixel taken; pixels that are
IGNORED count nowhere. Pixels are those of the model's input, as in torchvision's reference: images and label maps go
through the same resize and crop. Counting is scikit-learn's. Memory: C x C counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.errors import EnvironmentLacking, UnsupportedDataError, UnsupportedModelError
from gpusq_onnx.tasks.kinds import output_kinds
from gpusq_onnx.tasks.pixels import resized

IGNORED = 255
"""The value of pixels that have no class."""


class Segmentation:
    """Streaming mean IoU of one model.

    Raises:
        EnvironmentLacking: scikit-learn is not installed.
    """

    def __init__(self) -> None:
        try:
            from sklearn.metrics import confusion_matrix
        except ImportError:
            raise EnvironmentLacking(
                "mean IoU needs scikit-learn, which is not installed", hint="pip install 'gpusq-onnx[metrics]'"
            ) from None
        self._confusion = confusion_matrix
        self._counts: NDArray[np.int64] | None = None  # [true class, class found]
        self._images = 0

    def update(self, outputs: Mapping[str, NDArray[Any]], maps: NDArray[np.uint8]) -> None:
        """Take in one batch: the model's outputs by name, and uint8[N, H, W], the class of each pixel of its input.

        Raises UnsupportedModelError when no output has logits a pixel, UnsupportedDataError when a class is not below
        the number of the model's.
        """
        for logits, classes in zip(_logits(outputs, maps.shape), maps, strict=True):
            known = len(logits)
            reported = classes != IGNORED
            highest = int(classes.max(where=reported, initial=0))
            if highest >= known:
                raise UnsupportedDataError(
                    f"class {highest} of a label map is no class of the model",
                    expected=f"0 to {known - 1}, or {IGNORED} for none",
                    hint="label maps that count from 1 (ADE20K): --reduce-zero-label",
                )
            found = resized(logits, classes.shape).argmax(axis=0)
            if reported.any():
                counts = self._confusion(classes[reported], found[reported], labels=np.arange(known))
                self._counts = counts if self._counts is None else self._counts + counts
            self._images += 1

    def result(self) -> dict[str, float | int]:
        """{"mIoU", "aAcc": 0..1, "n": images}. Raises UnsupportedDataError where no pixel has a class."""
        if self._counts is None:
            raise UnsupportedDataError("no pixel of the label maps has a class", expected=f"values below {IGNORED}")
        right = np.diagonal(self._counts)
        either = self._counts.sum(axis=0) + self._counts.sum(axis=1) - right
        iou = right[either > 0] / either[either > 0]
        return {"mIoU": float(iou.mean()), "aAcc": float(right.sum() / self._counts.sum()), "n": self._images}


def _logits(outputs: Mapping[str, NDArray[Any]], maps: tuple[int, ...]) -> NDArray[Any]:
    """The output with a logit for each pixel and class, [N, C, h, w]; the largest, where there are several."""
    images, height, width = maps
    kinds = output_kinds({name: x.shape for name, x in outputs.items()}, (images, 3, height, width))
    pixels = [outputs[name] for name, kind in kinds.items() if kind == "pixels"]
    if not pixels:
        raise UnsupportedModelError(
            "no output has class logits of pixels",
            expected="[N, classes, height, width]",
            found=", ".join(f"{name} {list(x.shape)}" for name, x in outputs.items()),
            hint="leave --masks out to compare the outputs as they are",
        )
    return max(pixels, key=lambda x: x.shape[2] * x.shape[3])
