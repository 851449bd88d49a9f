"""Sizes for inputs that leave more than the batch open, where an engine or a timing wants one."""

from __future__ import annotations

from collections.abc import Sequence

from gpusq_onnx.data.opening import open_source
from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.preprocess import SizeOpenError
from gpusq_onnx.data.sizes import sizes_of
from gpusq_onnx.data.source import InputSpec
from gpusq_onnx.errors import UsageError
from gpusq_onnx.graph.model import TensorSpec
from gpusq_onnx.graph.pin import is_open, pin_specs
from gpusq_onnx.runtime.tensorrt.profiles import parse_shapes


def open_sizes(inputs: Sequence[TensorSpec], shapes: Sequence[str], options: DataOptions) -> dict[str, tuple[int, ...]]:
    """Shapes for inputs that leave more than the batch open: `INPUT=SHAPE` texts, else what the images' options say.

    Raises:
        UsageError: a shape that cannot be read or does not fit; a crop where nothing takes images, or not of that
            size; neither shapes nor a crop.
    """
    given = {name: bounds.opt for name, bounds in map(parse_shapes, shapes)}
    sized = pin_specs(inputs, given)
    if options.crop is None and not is_open(sized):
        return given
    try:
        source = open_source(options, sized)
    except SizeOpenError as error:  # --crop is the one option of an image's size that every such verb has
        raise SizeOpenError(error.spec, "for example --crop 224; or --shapes INPUT=1x3x224x224") from error
    if options.crop is not None and options.path is None and not source.croppable:
        found = ", ".join(str(InputSpec(spec.name, spec.dtype, spec.shape)) for spec in sized)
        raise UsageError("the model takes no images that --crop could size", where="--crop", found=found)
    return {**sizes_of(source), **given}
