"""Sizes for inputs that leave more than the batch open, where an engine or a timing wants one."""

from __future__ import annotations

from collections.abc import Sequence

from gpusq_onnx.data.opening import open_source
from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.preprocess import SizeOpenError
from gpusq_onnx.data.sizes import sizes_of
from gpusq_onnx.data.source import InputSpec
from gpusq_onnx.errors import UnsupportedDataError, UsageError
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
    except UnsupportedDataError as error:
        if options.path is not None:
            raise
        raise UsageError(
            "the model leaves axes open that no image's size says",
            where="--shapes",
            found=_listed(sized),
            hint="give --shapes INPUT=SHAPE with every axis, for example ids=1x128",
        ) from error
    if options.crop is not None and options.path is None and not source.croppable:
        raise UsageError("the model takes no images that --crop could size", where="--crop", found=_listed(sized))
    return {**sizes_of(source), **given}


def _listed(inputs: Sequence[TensorSpec]) -> str:
    return ", ".join(str(InputSpec(spec.name, spec.dtype, spec.shape)) for spec in inputs)
