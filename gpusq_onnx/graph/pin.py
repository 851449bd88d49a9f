"""A model at the one size that it is going to be used at: height and width (or a number of frames) as numbers.

Exports with every axis dynamic (optimum: `pixel_values [batch, channels, height, width]`) can be quantised as they are;
to train, to time or to plan an engine takes a size. The first axis, the batch, stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from gpusq_onnx.errors import UsageError
from gpusq_onnx.graph.model import Model, TensorSpec

Sizes = Mapping[str, Sequence[int]]
"""Shapes by input name; the first axis does not count."""


def is_open(specs: Sequence[TensorSpec]) -> bool:
    """Whether an axis besides the batch is dynamic."""
    return any(not isinstance(size, int) for spec in specs for size in spec.shape[1:])


def pin_specs(specs: Sequence[TensorSpec], sizes: Sizes) -> list[TensorSpec]:
    """The inputs with the axes that `sizes` names as numbers.

    Raises:
        UsageError: a name that is no input, or a shape that does not fit it.
    """
    known = {spec.name: spec for spec in specs}
    for name, shape in sizes.items():
        if name not in known:
            raise UsageError(f"no input is named {name}", where="--shapes", expected=f"one of {', '.join(known)}")
        own = known[name].shape
        if len(own) != len(shape) or any(
            isinstance(size, int) and size != wanted for size, wanted in zip(own[1:], shape[1:], strict=True)
        ):
            found, expected = ("x".join("?" if n is None else str(n) for n in side) for side in (shape, own))
            raise UsageError(f"the shape does not fit input {name}", expected=expected, found=found)
    return [
        replace(spec, shape=(*spec.shape[:1], *sizes[spec.name][1:])) if spec.name in sizes else spec for spec in specs
    ]


def pinned(model: Model, sizes: Sizes) -> Model:
    """The model with its open axes at `sizes`; the model itself where there is none. Its weights are shared.

    Raises:
        UsageError: as `pin_specs`.
    """
    if not is_open(model.inputs()):
        return model
    specs = {spec.name: spec for spec in pin_specs(model.inputs(), sizes)}
    model = model.clone()
    for value in model.frame.input:
        for axis, size in enumerate(specs[value.name].shape if value.name in specs else ()):
            if isinstance(size, int):
                value.type.tensor_type.shape.dim[axis].dim_value = size
    for tensor in model.graph.inputs:
        tensor.shape = list(specs[tensor.name].shape)
    return model
