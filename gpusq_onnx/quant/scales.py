"""The scales of a quantised tensor: how many there are, and what each one covers.

    tensor    one number
    channel   one a channel: 1-D along `axis`
    block     one for each `block` consecutive elements along `axis`, separately in every other direction
    outer     a second scale over those (NVFP4: FP8 block scales under one FP32 number): x' = code * values * outer

Source: ONNX DequantizeLinear-21 (granularity, axis, block_size); TensorRT's NVFP4 for `outer`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Granularity = Literal["tensor", "channel", "block"]


@dataclass(frozen=True, eq=False)
class Scales:
    """Scales in the units of the values, > 0.

    Attributes:
        values: [] for a tensor, [channels], or the tensor's shape with `axis` divided by `block`.
        axis: of the channels, or along which blocks run; None for one scale.
        block: elements that share a scale along `axis`; 0: no blocks.
        outer: a scale over all of `values`; None: 1.
    """

    values: Float32
    axis: int | None = None
    block: int = 0
    outer: float | None = None

    def __post_init__(self) -> None:
        values, outer = self.values, 1.0 if self.outer is None else self.outer
        if not (np.isfinite(values).all() and (values > 0).all() and 0 < outer < np.inf):
            raise ValueError(f"scales must be finite and > 0; found {values.min()}..{values.max()}, outer {outer}")
        if self.axis is None and values.size != 1:
            raise ValueError(f"a scale of shape {values.shape} needs an axis")

    @property
    def granularity(self) -> Granularity:
        """What one scale covers."""
        if self.block:
            return "block"
        return "tensor" if self.axis is None else "channel"

    @classmethod
    def of(cls, scale: Scales | NDArray[Any] | float, axis: int | None = None) -> Scales:
        """Plain numbers as scales: one, or one a channel along `axis`. Raises ValueError as the class."""
        if isinstance(scale, Scales):
            return scale
        return cls(np.asarray(scale, np.float32), axis)

    def along(self, shape: tuple[int, ...]) -> Float32:
        """The scales, `outer` included, shaped to broadcast over a tensor of `shape`.

        Raises:
            ValueError: they do not fit it.
        """
        outer = np.float32(1 if self.outer is None else self.outer)
        if self.axis is None:
            return self.values.reshape(()) * outer
        axis = self.axis % len(shape)
        if not self.block:
            if self.values.shape != (shape[axis],):
                raise ValueError(f"scale of shape {self.values.shape} does not fit axis {axis} of shape {shape}")
            broadcast = [1] * len(shape)
            broadcast[axis] = -1
            return self.values.reshape(broadcast) * outer
        fitting = (*shape[:axis], -(-shape[axis] // self.block), *shape[axis + 1 :])
        if self.values.shape != fitting:
            raise ValueError(f"scales {self.values.shape} in blocks of {self.block} do not fit axis {axis} of {shape}")
        whole: Float32 = np.repeat(self.values, self.block, axis)[(slice(None),) * axis + (slice(shape[axis]),)]
        return whole * outer
