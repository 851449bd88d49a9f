"""Where workflows put what they make, unless the caller says where; of what is kept, the command line always does."""

from pathlib import Path

CACHE = Path.home() / ".cache" / "gpusq-onnx"
"""Engines, searched kernels, sensitivities."""

PARSER_CACHE = CACHE / "trt_cpu"
"""The TensorRT parser for machines without a GPU."""


def compressed_path(model: Path) -> Path:
    """The new model: MODEL.gpusq.onnx beside MODEL."""
    return model.with_suffix(".gpusq.onnx")
