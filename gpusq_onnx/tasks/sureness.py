"""How sure a model is of what it says about an image, whatever it says: the likelihood of its best answer.

    class logits          the best class
    a detector            the mean of its `ANSWERS` best detections
    class logits a pixel  the mean over the pixels

Images that are not prepared as the model learned to see them make it less sure (Hendrycks and Gimpel, arXiv 1610.02136,
"maximum softmax probability").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.errors import UnsupportedModelError
from gpusq_onnx.tasks.classification import confidence
from gpusq_onnx.tasks.detectors import DetectionReader
from gpusq_onnx.tasks.kinds import Shape, image_shape, output_kinds

ANSWERS = 10  # of a detector: most of its queries say nothing


def sureness(outputs: Mapping[str, NDArray[Any]], inputs: Sequence[Shape]) -> NDArray[np.float64] | None:
    """float64[B], 0 to 1, of a batch; None where the outputs are no classes, boxes or classes of pixels.

    Args:
        outputs: arrays by name, axis 0 the batch.
        inputs: shapes of the model's inputs.
    """
    floats = {name: x for name, x in outputs.items() if x.dtype.kind == "f"}
    kinds = output_kinds({name: x.shape for name, x in floats.items()}, image_shape(inputs))
    for name, kind in kinds.items():
        if kind == "logits":
            return confidence(floats[name])
        if kind == "pixels":
            sure: NDArray[np.float64] = confidence(floats[name]).mean(axis=(1, 2))
            return sure
    try:
        scores = DetectionReader((1, 1))(outputs).scores
    except UnsupportedModelError:
        return None
    best: NDArray[np.float64] = np.sort(scores, axis=1)[:, -ANSWERS:].mean(axis=1)
    return best
