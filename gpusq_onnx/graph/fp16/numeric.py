"""FP16 as numbers: what of a constant overflows or vanishes in it, and the constant in it.

    largest 65504 · smallest normal 2^-14 = 6.1e-5 · smallest 2^-24 = 6e-8, half of which already rounds to zero

Scales are raised to the smallest normal number, as TensorRT wants them. Limits and masks (a constant -1e9 for Where)
saturate: after a Softmax -65504 is as good. Infinities stay what they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import TensorProto

from gpusq_onnx.graph.model import data_type_of
from gpusq_onnx.graph.shapes import Types
from gpusq_onnx.sums import squared_sum

LARGEST = 65504.0
SMALLEST_NORMAL = 2.0**-14
SMALLEST = 2.0**-24


_SLIGHT = 0.005  # a share of the norm that is not worth counting exactly


@dataclass(frozen=True)
class WeightRange:
    """What FP16 makes of a constant.

    Attributes:
        largest: the largest finite |x|.
        error: the norm of what rounding loses below FP16's normal numbers, as a share of the tensor's norm, 0 to 1.
        mask: every value beyond FP16 is negative, as in an additive attention mask.
    """

    largest: float
    error: float
    mask: bool

    @property
    def overflows(self) -> bool:
        """Whether a finite value becomes infinite."""
        return self.largest > LARGEST

    @property
    def vanishes(self) -> bool:
        """Whether nothing but zeros is left of what was not zero."""
        return 0 < self.largest <= SMALLEST / 2


def weight_range(values: NDArray[Any]) -> WeightRange:
    """The range of an array of any float type."""
    if not values.size:
        return WeightRange(0.0, 0.0, False)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(low + high):
        finite = np.isfinite(values)
        low, high = (float(end(values, initial=0, where=finite)) for end in (np.min, np.max))
    largest = max(-low, high, 0.0)
    mask = largest > LARGEST and high <= LARGEST
    error = 0.0
    most = values.size**0.5 * SMALLEST / 2  # rounding moves a subnormal by half a step at most
    if largest > 0 and most > _SLIGHT * largest:
        small = np.where(np.abs(values) < SMALLEST_NORMAL, values, 0)
        error = (squared_sum(small - small.astype(np.float16)) / squared_sum(values)) ** 0.5
    return WeightRange(largest, error, mask)


def to_half(values: NDArray[Any]) -> NDArray[np.float16]:
    """The values rounded to FP16; finite ones beyond it saturate."""
    finite = np.clip(values, -LARGEST, LARGEST)
    rounded: NDArray[np.float16] = np.where(np.isinf(values), values, finite).astype(np.float16)
    return rounded


def scale_to_half(values: NDArray[Any]) -> NDArray[np.float16]:
    """Scales rounded to FP16 and raised to its smallest normal number."""
    return np.maximum(to_half(values), np.float16(SMALLEST_NORMAL))


def is_single(tensor: gs.Tensor, types: Types) -> bool:
    """Whether a tensor is float32."""
    if isinstance(tensor, gs.Constant):
        return data_type_of(tensor) == TensorProto.FLOAT
    return bool(tensor.name) and types.get(tensor.name) == np.dtype(np.float32)
