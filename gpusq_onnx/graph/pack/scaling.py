"""Float weights before Q/DQ as what they are: codes times scales.

    w = float32(code) * float32(scale), rounded to the type of w

Where that holds to the bit for every element, the codes say all that the floats do, in 8 bits or 4 instead of 32. The
pipeline ends by storing its weights so (`graph.qdq.codes.store_on_grid`).

Source: ONNX QuantizeLinear-21 and -23 (axis, block_size). Limits: codes of at most 8 bits; a zero point may be anything
that leaves code minus zero point within int8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.quant.formats import FORMATS
from gpusq_onnx.quant.scales import Scales
from gpusq_onnx.sparsity.packing import signed_nibbles

Codes = NDArray[np.uint8]

INTEGERS = "int8"
GRIDS = {INTEGERS: 8} | {row.grid: row.bits for row in FORMATS.values() if row.grid and not row.stored}
"""The types of codes, with their bits."""
ELEMENTS = {"float32": 4, "float16": 2, "bfloat16": 2}
"""The types of floats that are written as codes times scales, with their bytes."""


@dataclass(frozen=True)
class Scaling:
    """How floats follow from codes.

    Attributes:
        element: the type of the floats, a key of `ELEMENTS`.
        grid: the type of the codes, a key of `GRIDS`.
        scale: the name of the initializer with the scales.
        outer: that of the scale over those (NVFP4); "": none.
        order: the axes of the stored array in the order in which the scales see them; those of length 1 that they do
            not see come first.
        shape: of the array as the scales see it.
        axis, block: see `quant.scales.Scales`, along `shape`.
    """

    element: str
    grid: str
    scale: str
    outer: str
    order: tuple[int, ...]
    shape: tuple[int, ...]
    axis: int | None
    block: int = 0

    def fits(self, dims: Sequence[int]) -> bool:
        """Whether it can describe an array of this shape."""
        if self.element not in ELEMENTS or self.grid not in GRIDS or sorted(self.order) != list(range(len(dims))):
            return False
        hidden, ends = len(dims) - len(self.shape), [dims[axis] for axis in self.order]
        known = self.axis is None or (self.axis in range(len(self.shape)) and self.block >= 0)
        return hidden >= 0 and all(n == 1 for n in ends[:hidden]) and tuple(ends[hidden:]) == self.shape and known

    def factor(self, values: NDArray[Any], outer: float | None) -> NDArray[np.float32]:
        """The scales, to be broadcast over the stored array. Raises ValueError where they do not fit it."""
        scales = Scales(np.asarray(values, np.float32), self.axis, self.block, outer)
        if self.axis is None:
            return scales.along(self.shape)
        along = scales.along(self.shape)
        whole = along.reshape((1,) * (len(self.order) - along.ndim) + along.shape)
        return whole.transpose(np.argsort(self.order))

    def codes(self, floats: NDArray[Any], factor: NDArray[np.float32]) -> Codes | None:
        """The codes of floats in their stored shape, as bytes; None where codes do not give these very floats."""
        with np.errstate(all="ignore"):
            steps = floats.astype(np.float32) / factor
            if self.grid == INTEGERS:
                np.rint(steps, out=steps)
                if not (steps.min(initial=0) >= -128 and steps.max(initial=0) <= 127):  # NaN, too
                    return None
            codes = steps.astype(np.dtype(self.grid)).view(np.uint8)
            codes = signed_nibbles(codes) if GRIDS[self.grid] == 4 else codes
            again = self.floats(codes, factor)
            same = np.array_equal(again.view(np.uint8), np.ascontiguousarray(floats).view(np.uint8))
        return codes if same else None

    def floats(self, codes: Codes, factor: NDArray[np.float32]) -> NDArray[Any]:
        """The floats of codes in their stored shape."""
        plain = codes & np.uint8(15) if GRIDS[self.grid] == 4 else codes
        steps = np.ascontiguousarray(plain).view(np.dtype(self.grid)).astype(np.float32)
        np.multiply(steps, factor, out=steps)
        return steps.astype(np.dtype(self.element), copy=False)
