"""Sizes for inputs that leave more than the batch open, where an engine or a timing wants one."""

from __future__ import annotations

from collections.abc import Sequence

from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.sizes import sizes_for
from gpusq_onnx.graph.model import TensorSpec
from gpusq_onnx.graph.pin import is_open, pin_specs
from gpusq_onnx.runtime.tensorrt.profiles import parse_shapes


def open_sizes(inputs: Sequence[TensorSpec], shapes: Sequence[str], options: DataOptions) -> dict[str, tuple[int, ...]]:
    """Shapes for inputs that leave more than the batch open: `INPUT=SHAPE` texts, else what the images' options say.

    Raises:
        UsageError: a shape that cannot be read or does not fit; neither shapes nor a crop.
    """
    given = {name: bounds.opt for name, bounds in map(parse_shapes, shapes)}
    if is_open(pin_specs(inputs, given)):
        given |= {name: size for name, size in sizes_for(inputs, options).items() if name not in given}
    return given
