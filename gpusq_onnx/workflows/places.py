"""Where workflows keep what is made once and used again, unless the caller says where; the command line always does."""

from pathlib import Path

CACHE = Path.home() / ".cache" / "gpusq-onnx"
"""Engines, searched kernels, sensitivities."""

PARSER_CACHE = CACHE / "trt_cpu"
"""The TensorRT parser for machines without a GPU."""
