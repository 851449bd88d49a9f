"""FP16 as numbers: what of a constant overflows or vanishes in it, and the constant in it.

    largest 65504 · smallest normal 2^-14 = 6.1e-5 · smallest 2^-24 = 6e-8, half of which already rounds to zero

Scales are raised to the smallest normal number, as TensorRT wants them. Limits and masks (a constant -1e9 for Where)
saturate: behind a Softmax -65504 is as good. Infinities stay what they are.
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

LARGEST = 65504.0
SMALLEST_NORMAL = 2.0**-14
SMALLEST = 2.0**-24


_SAFE = 0.125  # a tensor that holds this much loses at most 0.3 % of its norm to subnormals, even with 10^8 elements


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
    magnitude = np.abs(values)
    largest = float(np.max(magnitude, initial=0))
    if not np.isfinite(largest):
        largest = float(np.max(magnitude, initial=0, where=np.isfinite(magnitude)))
    mask = largest > LARGEST and float(np.max(values, initial=-np.inf, where=np.isfinite(values))) <= LARGEST
    error = 0.0
    if 0 < largest < _SAFE:
        exact = np.where(magnitude < SMALLEST_NORMAL, values, 0).astype(np.float64)
        lost = np.linalg.norm(exact - exact.astype(np.float16))
        error = float(lost / np.linalg.norm(values.astype(np.float64)))
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
