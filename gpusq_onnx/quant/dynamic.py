"""NVFP4's scales of two levels: small float scales of blocks under one FP32 number, for weights and at run time.

    outer       max(block scales) / 448 for a weight; calibrated max|x| / (448 * 6) for an activation
    inner       the nearest FP8 value (E4M3) to a block's scale / outer
    x'          FP4 nearest to x / (inner * outer), times inner * outer

An activation's block scale is max|block| / 6, taken anew for every image; only `outer` is calibrated, and a block
whose scale exceeds 448 * outer saturates. A block whose scale rounds to zero becomes zero.

Source: TensorRT's IDynamicQuantizeLayer and `TRT_FP4DynamicQuantize`; ModelOpt's `nvfp4_exporter.py`. What the node
computes in TensorRT is inferred from these: no GPU has shown the last bit.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.quant.clipping import weight_scales
from gpusq_onnx.quant.formats import FORMATS, Format, clamp_scale
from gpusq_onnx.quant.scales import Scales

Float32 = NDArray[np.float32]


def scales_for(w: NDArray[Any], fmt: Format, *, method: Literal["mse", "absmax"] = "mse", block: int = 0) -> Scales:
    """The scales of w[out, k] in a format: one an output channel or in blocks, of two levels where the format says so.

    Raises:
        ValueError: as `quant.clipping.weight_scales`.
    """
    values = weight_scales(w, fmt, method=method, block=block)
    if not block:
        return Scales(values, 0)
    return two_level(values, block, FORMATS[fmt.scales]) if fmt.scales else Scales(values, 1, block)


def two_level(values: Float32, block: int, inner: Format) -> Scales:
    """Scales [out, k / block] of a weight in blocks along k as `inner` values under one number; all stay > 0."""
    outer = float(clamp_scale(float(np.max(values, initial=0) / np.float32(inner.largest))))
    least = np.float32(inner.least_normal * 2.0**-inner.mantissa)
    rounded = inner.round_steps((values / np.float32(outer)).astype(np.float32))
    return Scales(np.maximum(rounded, least), 1, block, outer)


def dynamic_quantize(x: NDArray[Any], outer: float, fmt: Format, block: int) -> Float32:
    """What quantising at run time and back makes of x[..., k], float32.

    Args:
        outer: the calibrated number over the block scales, > 0.
        fmt: of the codes; `fmt.scales` is that of the block scales.
        block: elements along the last axis that share a scale.

    Raises:
        ValueError: blocks that do not divide k.
    """
    if x.shape[-1] % block:
        raise ValueError(f"blocks of {block} do not divide the last axis of {x.shape}")
    blocks = x.astype(np.float32).reshape(-1, block)
    peaks = np.abs(blocks).max(axis=1, keepdims=True, initial=0)
    inner = FORMATS[fmt.scales].round_steps(peaks / np.float32(fmt.largest * outer))
    scale = inner * np.float32(outer)
    steps = np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale > 0)
    return np.asarray((fmt.round_steps(steps) * scale).reshape(x.shape), np.float32)


def outer_scale(largest: float, fmt: Format) -> float:
    """The number over an activation's block scales, for the largest |x| that has a scale of its own; 1 for zero."""
    whole = fmt.largest * FORMATS[fmt.scales].largest
    return float(clamp_scale(largest / whole)) if largest > 0 else 1.0
