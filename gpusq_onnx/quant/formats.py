"""Number formats as rows of one table, and what ONNX's QuantizeLinear and DequantizeLinear do with them.

    code = nearest value of the format's grid to x / scale, ties to even, saturating        x' = code * scale
    grid: the integers lowest..largest, or the values of a small float type                 zero point 0

Zero maps to zero, so a sparsity pattern survives. A format's grid can be smaller than the ONNX type that carries it
(`int4-in-int8`: 4-bit values in INT8 tensors, which INT8 kernels multiply exactly).

Which scales go with a format is `quant.scales`; which formats go together is `quant.schemes`. A new format is one row
here: pruning, calibration, training, inspection, cost and packing read the table.

Sources: ONNX QuantizeLinear-21 and -23; OCP 8-bit floating point (E4M3), OCP microscaling formats (E2M1); ml_dtypes for
the float grids; docs/formats.md for what TensorRT and onnxruntime take.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray

from gpusq_onnx.quant.scales import Scales

Float32 = NDArray[np.float32]

LOW_BITS = 4  # of a weight: at or below, rounding to nearest costs too much, and training has more to mend


@dataclass(frozen=True)
class Format:
    """One number format.

    Attributes:
        name: as options and reports in JSON spell it.
        label: as people read it: "INT8", "FP8".
        element: the ONNX element type that carries the codes, in lower case: "int8", "float8e4m3fn".
        bits: of one code, where codes are packed as small as they are.
        lowest, largest: the ends of the grid, in units of the scale.
        grid: the numpy or ml_dtypes type whose values are the grid; "" for the integers.
        blocks: block sizes along the reduction that TensorRT takes for weights; empty: no blocks.
        activations: whether TensorRT takes it for activations.
        scales: the format of its block scales, which lie under one FP32 number; "": plain floats. Activations of such
            a format get their block scales at run time (`quant.dynamic`).
        least_opset: the first opset whose QuantizeLinear has it.
        stored: it is the type of plain float weights, not of codes with a scale.
    """

    name: str
    label: str
    element: str
    bits: int
    lowest: float
    largest: float
    grid: str = ""
    blocks: tuple[int, ...] = ()
    activations: bool = True
    scales: str = ""
    least_opset: int = 10
    stored: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 64 or not self.lowest <= 0 < self.largest:
            raise ValueError(f"a format has bits and a range around zero; found {self}")

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """The numpy type of codes: int8 for every signed integer format of at most 8 bits."""
        if self.grid:
            return np.dtype(self.grid)
        sign = "u" if self.lowest == 0 else ""
        return np.dtype(f"{sign}int{max(8, self.bits)}")

    @property
    def mantissa(self) -> int:
        """The stored mantissa bits of a float grid."""
        return int(ml_dtypes.finfo(self.dtype).nmant)  # type: ignore[no-untyped-call]

    @property
    def least_normal(self) -> float:
        """The least value of a float grid with a full mantissa; below it, values are as far apart as just above."""
        return float(ml_dtypes.finfo(self.dtype).smallest_normal)  # type: ignore[no-untyped-call]

    @property
    def carried(self) -> bool:
        """Whether the ONNX type has values beyond the grid, so that saturating takes a Clip of its own."""
        return natural(self.element) is not self

    def round_steps(self, steps: Float32) -> Float32:
        """`steps` (x / scale, any shape, no NaN) on the grid, in place where that is possible."""
        if not self.grid:
            np.rint(steps, out=steps)
        np.clip(steps, self.lowest, self.largest, out=steps)
        return steps.astype(self.dtype).astype(np.float32) if self.grid else steps

    def holds(self, codes: NDArray[Any]) -> bool:
        """Whether codes (of the same ONNX type) lie within the grid."""
        if not codes.size:
            return True
        wide = codes.astype(np.float32)
        return bool(wide.min() >= self.lowest and wide.max() <= self.largest)


def _integer(bits: int, **more: Any) -> Format:
    return Format(f"int{bits}", f"INT{bits}", f"int{bits}", bits, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, **more)


def _unsigned(bits: int, **more: Any) -> Format:
    return Format(f"uint{bits}", f"UINT{bits}", f"uint{bits}", bits, 0, 2**bits - 1, **more)


def _stored(name: str, element: str, grid: str, largest: float) -> Format:
    return Format(name, name.upper(), element, int(name[2:]), -largest, largest, grid, stored=True)


INT8 = _integer(8)
INT4 = _integer(4, blocks=(16, 32, 64, 128, 256), activations=False, least_opset=21)
INT4_IN_INT8 = Format("int4-in-int8", "INT4", "int8", 4, -8, 7)
FP8 = Format("fp8", "FP8", "float8e4m3fn", 8, -448, 448, "float8_e4m3fn", least_opset=19)
FP4 = Format("fp4", "FP4", "float4e2m1", 4, -6, 6, "float4_e2m1fn", blocks=(16,), scales="fp8", least_opset=23)

_FORMATS = {
    row.name: row
    for row in (
        INT8,
        INT4,
        INT4_IN_INT8,
        FP8,
        FP4,
        # what other tools write: known, so that it can be read, costed and shown
        Format("fp8-e5m2", "FP8 E5M2", "float8e5m2", 8, -57344, 57344, "float8_e5m2", least_opset=19),
        _unsigned(8),
        _integer(2, least_opset=25),
        _unsigned(2, least_opset=25),
        _unsigned(4, least_opset=21),
        _integer(16, least_opset=21),
        _unsigned(16, least_opset=21),
        # what weights are before they are quantised
        _stored("fp64", "double", "float64", float(np.finfo(np.float64).max)),
        _stored("fp32", "float", "float32", float(np.finfo(np.float32).max)),
        _stored("bf16", "bfloat16", "bfloat16", (2 - 2.0**-7) * 2.0**127),
        _stored("fp16", "float16", "float16", float(np.finfo(np.float16).max)),
    )
}
FORMATS: Mapping[str, Format] = MappingProxyType(_FORMATS)


def lowest_of(kind: np.dtype[Any]) -> NDArray[Any]:
    """The lowest finite number of a float type, bfloat16 too, in that type; shape []."""
    return np.asarray(ml_dtypes.finfo(kind).min, kind)  # type: ignore[no-untyped-call]


def natural(element: str) -> Format | None:
    """The format that uses all of an ONNX element type (in lower case); None for a type that is in no row."""
    rows = [row for row in FORMATS.values() if row.element == element]
    return max(rows, key=lambda row: row.bits, default=None)


def format_of(element: str, codes: NDArray[Any] | None = None) -> Format | None:
    """The narrowest format of an ONNX element type that holds `codes`; all of the type without codes.

    A scale of 8 bits is chosen so that the largest weight gets a large code: codes within 7 are 4-bit ones.
    """
    widest = natural(element)
    if codes is None or widest is None:
        return widest
    rows = sorted((row for row in FORMATS.values() if row.element == element), key=lambda row: row.bits)
    return next((row for row in rows if row.holds(codes)), widest)


def quantize(
    x: NDArray[Any], scale: Scales | NDArray[Any] | float, fmt: Format, axis: int | None = None
) -> NDArray[Any]:
    """Codes of `x` in the format's numpy type, same shape.

    Args:
        x: any float dtype; computed in float32.
        scale: > 0, in the units of x: `Scales`, or a number, or 1-D of length x.shape[axis].
        fmt: the codes' grid; values outside it saturate.
        axis: of a 1-D scale; None for one scale.

    Raises:
        ValueError: NaN in x, a scale that is not finite and > 0 or does not fit x.
    """
    steps = x.astype(np.float32, copy=False) / Scales.of(scale, axis).along(x.shape)
    if np.isnan(steps).any():
        raise ValueError(f"cannot quantise NaN; found one in shape {x.shape}")
    return fmt.round_steps(steps).astype(fmt.dtype)


def dequantize(codes: NDArray[Any], scale: Scales | NDArray[Any] | float, axis: int | None = None) -> Float32:
    """codes * scale in float32. Arguments and errors as `quantize`."""
    return codes.astype(np.float32) * Scales.of(scale, axis).along(codes.shape)


def fake_quantize(
    x: NDArray[Any], scale: Scales | NDArray[Any] | float, fmt: Format, axis: int | None = None
) -> Float32:
    """What a QuantizeLinear, DequantizeLinear pair makes of `x`, float32. Arguments and errors as `quantize`."""
    return dequantize(quantize(x, scale, fmt, axis), scale, axis)


def clamp_scale(scale: NDArray[Any] | float, dtype: DTypeLike = np.float32) -> Float32:
    """`scale` raised to the smallest normal number of the type it will be stored in: 6.1e-5 for float16.

    Below it a float16 scale is subnormal or zero, and TensorRT rejects zero. Returns float32 in the shape of `scale`.
    """
    floor = 2.0**-14 if np.dtype(dtype) == np.float16 else 2.0**-126
    return np.maximum(np.asarray(scale, np.float32), np.float32(floor))
