"""Sizes for inputs that leave more than the batch open, where an engine or a timing wants one."""

from __future__ import annotations

from collections.abc import Sequence

from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.preprocess import SizeOpenError
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
        try:
            sizes = sizes_for(inputs, options)
        except SizeOpenError as error:  # --crop is the one option of an image's size that every such verb has
            raise SizeOpenError(error.spec, "for example --crop 224; or --shapes INPUT=1x3x224x224") from error
        given |= {name: size for name, size in sizes.items() if name not in given}
    return given
