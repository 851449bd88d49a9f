"""Forms in FP16 that onnxruntime's default session crashes on, refuses or computes wrongly, written in another way.

One module each: biases, Concats, Transposes. They are looked for in every model that is written, whoever brought FP16
into it, and nothing else changes.
"""

from __future__ import annotations

from gpusq_onnx.graph.fp16.biases import protect_biases
from gpusq_onnx.graph.fp16.concats import protect_concats
from gpusq_onnx.graph.fp16.transposes import move_transposes
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.shapes import Shapes


def make_loadable(model: Model, shapes: Shapes) -> None:
    """Rewrite all of them, in place."""
    protect_biases(model, shapes)
    protect_concats(model)
    move_transposes(model)
