"""Rounding to a grid with a learned scale: values as ONNX, gradients as LSQ.

    forward     q = clip(round_half_even(x / s) + z, qmin, qmax)      x' = (q - z) * s         integers
                q = nearest value of the float grid to clip(x / s)    x' = q * s               FP8, FP4
    backward    dx' / dx = 1 inside the range, 0 outside
                dx' / ds = (q - z) - x / s inside, (q - z) outside    times a factor

The gradient for s is the same for both grids: x' = s q(x / s), and the derivative of q is taken as 1 inside. The factor
makes a relative step of s as large as one of x (LSQ, section 2.2): |dL/ds| is about g |q - v|, with v = x / s over the
n elements that share s and g the size of one gradient, so the ratio to make 1 is |q - v| |v| / sqrt(n).

    integers    |q - v| = sqrt(n / 12), |v| = sqrt(12 qmax n):      factor 1 / sqrt(n qmax), as LSQ has it
    floats      |q - v| = e |v|, e = 2^-m / sqrt(24) for m stored mantissa bits, |v| = sqrt(n) qmax / 4 (the largest of
                a few hundred values is four times their size):     factor 1 / (e sqrt(n) (qmax / 4)^2)

A float grid rounds in steps of its binade: 2^(floor(log2 |v|) - m), below the least normal number those of its binade.

Source: Esser et al., Learned Step Size Quantization, ICLR 2020; the float factor is ours. Limits: computed in float32
whatever the type of x.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gpusq_onnx.quant.formats import Format

_EXPONENT = 0x7F800000  # of a float32: what is left is the power of two below a normal number


@dataclass(frozen=True)
class FloatGrid:
    """A small float type: its stored mantissa bits and least normal number."""

    mantissa: int
    least: float

    @classmethod
    def of(cls, fmt: Format) -> FloatGrid | None:
        """The grid of a format; None for integers."""
        return cls(fmt.mantissa, fmt.least_normal) if fmt.grid else None


def gradient_factor(count: int, qmax: float, grid: FloatGrid | None) -> float:
    """What a scale's gradient is multiplied by, where `count` elements share it: see the module's text."""
    if grid is None:
        return float((count * max(qmax, 1)) ** -0.5)
    error = 2.0**-grid.mantissa / 24**0.5
    return float(1 / (error * count**0.5 * (qmax / 4) ** 2))


def _rounded(ratio: Tensor, low: float, high: float, grid: FloatGrid | None) -> Tensor:
    """The grid's nearest values; a new tensor."""
    if grid is None:
        return functional.hardtanh_(ratio.round(), low, high)  # clamp_ has no rule under vmap
    clipped = functional.hardtanh(ratio, low, high)
    binade = (clipped.abs().clamp_min(grid.least).view(torch.int32) & _EXPONENT).view(torch.float32)
    step = binade * 2.0**-grid.mantissa
    return clipped.div_(step).round_().mul_(step)


class _FakeQuantise(torch.autograd.Function):
    """The formulas above, in float32 whatever the type of `x`; `scale` broadcasts over `x`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, scale: Tensor, low: float, high: float, factor: float, floor: float, grid: FloatGrid | None
    ) -> Tensor:
        step = scale.clamp_min(floor)
        return _rounded(torch.div(x.float(), step), low, high, grid).mul_(step).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, scale, ctx.low, ctx.high, ctx.factor, ctx.floor, ctx.grid = inputs
        ctx.save_for_backward(x, scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, scale = ctx.saved_tensors
        grad = grads[0].float()
        ratio = torch.div(x.float(), scale.clamp_min(ctx.floor))
        inner = torch.ops.aten.hardtanh_backward(grad, ratio, ctx.low, ctx.high)  # 0 outside the range
        grad_x = inner.to(x.dtype)
        if not ctx.needs_input_grad[1]:
            return grad_x, None, None, None, None, None, None
        codes = _rounded(ratio, ctx.low, ctx.high, ctx.grid)
        excess = ratio.sub_(codes)  # in place: a fresh page costs more than the arithmetic
        if scale.numel() == 1:
            grad, flat, codes = grad.reshape(-1), inner.reshape(-1), codes.reshape(-1)
            total = torch.dot(grad, codes) - torch.dot(flat, codes) - torch.dot(flat, excess.reshape(-1))
        else:
            shared = [axis for axis in range(-x.ndim, 0) if axis < -scale.ndim or scale.shape[axis] == 1]
            total = codes.mul_(grad - inner).sub_(excess.mul_(inner)).sum(shared)
        return grad_x, total.reshape(scale.shape) * ctx.factor, None, None, None, None, None


def fake_quantise(
    x: Tensor,
    scale: Tensor,
    low: float,
    high: float,
    factor: float,
    floor: float,
    grid: FloatGrid | None = None,
) -> Tensor:
    """The pair as a function; `scale` broadcasts over `x`, `factor` multiplies its gradient; no grid: integers."""
    rounded: Tensor = _FakeQuantise.apply(x, scale, low, high, factor, floor, grid)  # type: ignore[no-untyped-call]
    return rounded


class _AtRunTime(torch.autograd.Function):
    """`quant.dynamic.dynamic_quantize`; its derivative is taken as 1."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, outer: Tensor, block: int, codes: Format, scales: Format) -> Tensor:
        outer = outer.float().reshape(())
        blocks = x.float().reshape(-1, block)
        peaks = blocks.abs().amax(-1, keepdim=True)
        inner = _rounded(peaks / (outer * codes.largest), scales.lowest, scales.largest, FloatGrid.of(scales))
        scale = inner * outer
        steps = blocks / scale.clamp_min(torch.finfo(torch.float32).tiny)
        return (_rounded(steps, codes.lowest, codes.largest, FloatGrid.of(codes)) * scale).reshape(x.shape).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0], None, None, None, None


def quantise_at_run_time(x: Tensor, outer: Tensor, block: int, codes: Format, scales: Format) -> Tensor:
    """`x` on the grid of `codes`, each `block` of its last axis under a scale of its own on the grid of `scales`."""
    rounded: Tensor = _AtRunTime.apply(x, outer, block, codes, scales)  # type: ignore[no-untyped-call]
    return rounded


class _ScaleGradient(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(scale: Tensor, factor: float, floor: float) -> Tensor:
        return scale.clamp_min(floor)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0] * ctx.factor, None, None


def stored_codes(codes: Tensor, scale: Tensor, axis: int | None, factor: float, floor: float, block: int = 0) -> Tensor:
    """Codes times their learned scale; the scale's gradient is multiplied by `factor`."""
    step: Tensor = _ScaleGradient.apply(scale, factor, floor)  # type: ignore[no-untyped-call]
    if axis is None:
        return codes * step.reshape(())
    if block:
        return (in_blocks(codes, axis, block) * step.unsqueeze(axis + 1)).reshape(codes.shape)
    return codes * along(step, codes.ndim, axis)


def in_blocks(x: Tensor, axis: int, block: int) -> Tensor:
    """A tensor with `axis` as two: blocks, and the `block` elements of each."""
    return x.reshape(*x.shape[:axis], -1, block, *x.shape[axis + 1 :])


def along(scale: Tensor, rank: int, axis: int) -> Tensor:
    """A scale a channel, shaped to broadcast over a tensor of this rank."""
    return scale.reshape([-1 if a == axis else 1 for a in range(rank)])
