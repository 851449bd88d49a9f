"""Calibrate with arrays that your own loader makes, and keep the model in memory: python examples/arrays.py

What goes in is what the model's input takes: preprocessed, float32, axis 0 the batch. Batches may come from a
generator; memory is one batch.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

import gpusq_onnx

ASSETS = Path(__file__).parents[1] / "tests" / "assets"


def batches() -> Iterator[dict[str, NDArray[np.float32]]]:
    """Four batches of 16, as a data loader would yield them."""
    pixels = np.load(ASSETS / "digits_train.npz")["pixel_values"]
    for start in range(0, 64, 16):
        yield {"pixel_values": pixels[start : start + 16]}


def main() -> None:
    """From a model in memory to a model in memory."""
    model = onnx.load(ASSETS / "digits_vit.onnx")
    result = gpusq_onnx.compress(model, "prune24,qdq-int8", data=batches())
    session = onnxruntime.InferenceSession(result.model.SerializeToString(), providers=["CPUExecutionProvider"])
    test = np.load(ASSETS / "digits_test.npz")
    (logits,) = session.run(None, {"pixel_values": test["pixel_values"]})
    print(f"top-1 of the compressed model: {(logits.argmax(1) == test['labels']).mean():.1%}")


if __name__ == "__main__":
    main()
