"""Symmetric integer formats, and the arithmetic of ONNX QuantizeLinear and DequantizeLinear on them.

    q = clip(round_half_even(x / scale), qmin, qmax)        x' = q * scale        zero point 0 always

Zero maps to zero, so a sparsity pattern survives. Weights use the narrow range (-127..127, as TensorRT's symmetric
weights), activations the full one. Codes of fewer than 8 bits are carried in int8.

Source: ONNX QuantizeLinear-21; TensorRT's parser: zero point 0, every scale > 0.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class IntFormat:
    """Signed integers of 2 to 8 bits; `narrow` leaves out the most negative code."""

    bits: int = 8
    narrow: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"an integer format has 2 to 8 bits; found {self.bits}")

    @property
    def qmax(self) -> int:
        """Largest code: 127 for 8 bits."""
        return int(2 ** (self.bits - 1) - 1)

    @property
    def qmin(self) -> int:
        """Smallest code: -128 for 8 bits, -127 narrow."""
        return -self.qmax if self.narrow else -self.qmax - 1


INT8 = IntFormat(8)
INT8_WEIGHT = IntFormat(8, narrow=True)


def quantize(x: NDArray[Any], scale: NDArray[Any] | float, fmt: IntFormat, axis: int | None = None) -> NDArray[np.int8]:
    """Codes of `x`, int8, same shape.

    Args:
        x: any float dtype; computed in float32.
        scale: > 0; a number, or 1-D of length x.shape[axis] in the units of x.
        fmt: the codes' range; values outside it saturate.
        axis: of the per-channel scale; None for one scale.

    Raises:
        ValueError: NaN in x, a scale that is not finite and > 0 or does not fit x.
    """
    codes = x.astype(np.float32) / _along(scale, x, axis)
    if np.isnan(codes).any():
        raise ValueError(f"cannot quantise NaN; found one in shape {x.shape}")
    np.rint(codes, out=codes)
    np.clip(codes, fmt.qmin, fmt.qmax, out=codes)
    return codes.astype(np.int8)


def dequantize(codes: NDArray[np.int8], scale: NDArray[Any] | float, axis: int | None = None) -> Float32:
    """codes * scale in float32. Arguments and errors as `quantize`."""
    return codes.astype(np.float32) * _along(scale, codes, axis)


def fake_quantize(x: NDArray[Any], scale: NDArray[Any] | float, fmt: IntFormat, axis: int | None = None) -> Float32:
    """What a QuantizeLinear, DequantizeLinear pair makes of `x`, float32. Arguments and errors as `quantize`."""
    return dequantize(quantize(x, scale, fmt, axis), scale, axis)


def clamp_scale(scale: NDArray[Any] | float, dtype: DTypeLike = np.float32) -> Float32:
    """`scale` raised to the smallest normal number of the type it will be stored in: 6.1e-5 for float16.

    Below it a float16 scale is subnormal or zero, and TensorRT rejects zero. Returns float32 in the shape of `scale`.
    """
    floor = 2.0**-14 if np.dtype(dtype) == np.float16 else 2.0**-126
    return np.maximum(np.asarray(scale, np.float32), np.float32(floor))


def _along(scale: NDArray[Any] | float, x: NDArray[Any], axis: int | None) -> Float32:
    """`scale` as float32, shaped to broadcast over `x`."""
    values = np.asarray(scale, np.float32)
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise ValueError(f"scales must be finite and > 0; found {values.min()}..{values.max()}")
    if axis is None:
        if values.size != 1:
            raise ValueError(f"a scale of shape {values.shape} needs an axis of x, whose shape is {x.shape}")
        return values.reshape(())
    if values.shape != (x.shape[axis],):
        raise ValueError(f"scale of shape {values.shape} does not fit axis {axis} of shape {x.shape}")
    shape = [1] * x.ndim
    shape[axis] = -1
    return values.reshape(shape)
