"""Q/DQ pairs with learned scales (LSQ), and the rows of the table that make them.

    forward     q = clip(round_half_even(x / s) + z, qmin, qmax)      x' = (q - z) * s         as ONNX and onnxruntime
    backward    dx' / dx = 1 inside the range, 0 outside
                dx' / ds = (q - z) - x / s inside, (q - z) outside    times 1 / sqrt(n * qmax)

n is the number of elements of one image that share the scale (of the weight, for weights), so that neither the batch
size nor the number of processes changes a step. s is raised to a floor above zero in the forward pass, its gradient
goes through. Zero has a level: pruned weights stay exactly zero.

Source: Esser et al., Learned Step Size Quantization, ICLR 2020, section 2; docs/method.md, "Learned scales"; the ONNX
operator QuantizeLinear-21. Limits: integer types of 2 to 16 bits; one zero point a tensor; no blocks. Weights that are
stored as INT8 codes are constants: their scale is learned, their codes are not.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from gpusq_onnx.graph.model import Node, values_of
from gpusq_onnx.graph.quantize_nodes import activation_format, is_grid_clip
from gpusq_onnx.graph.trace import trace
from gpusq_onnx.quant.formats import format_of, natural
from gpusq_onnx.quant.formats import quantize as quantized
from gpusq_onnx.torchgraph.builder import Unsupported, Value
from gpusq_onnx.torchgraph.call import Call, Row


def floor_of(dtype: np.dtype[Any]) -> float:
    """The least scale of a stored type: a normal number (TensorRT rejects zero) that can still be divided by."""
    return 2.0**-14 if dtype.name == "float16" else 2.0**-60


class _FakeQuantise(torch.autograd.Function):
    """The formulas above, in float32 whatever the type of `x`; `scale` broadcasts over `x`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, scale: Tensor, low: int, high: int, factor: float, floor: float) -> Tensor:
        step = scale.clamp_min(floor)
        codes = functional.hardtanh_(torch.div(x.float(), step).round_(), low, high)  # clamp_ has no rule under vmap
        return codes.mul_(step).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, scale, ctx.low, ctx.high, ctx.factor, ctx.floor = inputs
        ctx.save_for_backward(x, scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, scale = ctx.saved_tensors
        grad = grads[0].float()
        ratio = torch.div(x.float(), scale.clamp_min(ctx.floor))
        inner = torch.ops.aten.hardtanh_backward(grad, ratio, ctx.low, ctx.high)  # 0 outside the range
        grad_x = inner.to(x.dtype)
        if not ctx.needs_input_grad[1]:
            return grad_x, None, None, None, None, None
        codes = functional.hardtanh_(ratio.round(), ctx.low, ctx.high)
        excess = ratio.sub_(codes)  # in place: a fresh page costs more than the arithmetic
        if scale.numel() == 1:
            grad, flat, codes = grad.reshape(-1), inner.reshape(-1), codes.reshape(-1)
            total = torch.dot(grad, codes) - torch.dot(flat, codes) - torch.dot(flat, excess.reshape(-1))
        else:
            shared = [axis for axis in range(-x.ndim, 0) if axis < -scale.ndim or scale.shape[axis] == 1]
            total = codes.mul_(grad - inner).sub_(excess.mul_(inner)).sum(shared)
        return grad_x, total.reshape(scale.shape) * ctx.factor, None, None, None, None


class Quantiser(torch.nn.Module):
    """One Q/DQ pair; called with the tensor and its scale parameter.

    Attributes:
        scale: the scale's initializer in the ONNX graph.
        weight: the weight's initializer, None for an activation.
        axis: of the per-channel scale; None for one scale.
        qmin, qmax: range of q - z.
        bounds: the initializers of the Clip that keeps an activation within the range; none where its type does.
        enabled: off, the tensor passes as it is (the float twin).
    """

    def __init__(
        self, scale: str, weight: str | None, axis: int | None, qmin: int, qmax: int, count: int, floor: float
    ) -> None:
        super().__init__()
        self.scale, self.weight, self.axis, self.qmin, self.qmax = scale, weight, axis, qmin, qmax
        self.factor, self.floor, self.enabled = (count * max(qmax, 1)) ** -0.5, floor, True
        self.bounds: tuple[str, ...] = ()

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        """`x` rounded to the scale's grid, same shape and type."""
        if not self.enabled:
            return x
        shaped = scale.reshape(()) if self.axis is None else _along(scale, x.ndim, self.axis)
        # strides that differ between x and its gradient take the slow path of every pass
        return fake_quantise(x.contiguous(), shaped, self.qmin, self.qmax, self.factor, self.floor)

    def extra_repr(self) -> str:
        """What nn.Module prints."""
        return f"{self.weight or 'activation'}, scale={self.scale}, {self.qmin}..{self.qmax}, enabled={self.enabled}"


def fake_quantise(x: Tensor, scale: Tensor, low: int, high: int, factor: float, floor: float) -> Tensor:
    """The pair as a function; `scale` broadcasts over `x`, `factor` multiplies its gradient."""
    return _FakeQuantise.apply(x, scale, low, high, factor, floor)  # type: ignore[no-untyped-call, no-any-return]


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


def stored_codes(codes: Tensor, scale: Tensor, axis: int | None, factor: float, floor: float) -> Tensor:
    """Integer codes times their learned scale; the scale's gradient is multiplied by `factor`."""
    step: Tensor = _ScaleGradient.apply(scale, factor, floor)  # type: ignore[no-untyped-call]
    return codes * (step.reshape(()) if axis is None else _along(step, codes.ndim, axis))


def _along(scale: Tensor, rank: int, axis: int) -> Tensor:
    return scale.reshape([-1 if a == axis else 1 for a in range(rank)])


@dataclass(eq=False)
class Codes(Value):
    """The output of a QuantizeLinear: no tensor of its own, only what the DequantizeLinear after it needs."""

    source: Value | None = None
    scale: Value | None = None
    stored: str = ""


@dataclass(eq=False)
class Clipped(Value):
    """The output of a Clip to the ends of a quantiser's grid, which the quantiser is: no tensor of its own either."""

    source: Value | None = None
    bounds: tuple[str, ...] = ()


def clipped(c: Call) -> Clipped | None:
    """What a Clip makes that only keeps QuantizeLinears within a narrower grid; None for any other Clip."""
    if not is_grid_clip(c.node):
        return None
    shadow = tuple(torch.empty(world.shape, dtype=world.dtype, device="meta") for world in c.x(0).worlds)
    return Clipped(shadow, False, None, None, c.x(0), tuple(str(bound.name) for bound in c.node.inputs[1:3]))


def _quantize(c: Call) -> Value:
    _plain(c)
    x, scale = c.x(0), c.x(1)
    shadow = tuple(torch.empty(world.shape, dtype=torch.int8, device="meta") for world in x.worlds)
    return Codes(shadow, False, None, None, x, scale, _weight_behind(c))


def _dequantize(c: Call) -> Value:
    codes, scale, name = c.x(0), c.x(1), str(c.node.inputs[1].name)
    _plain(c)
    axis = int(c.attr("axis", 1)) % max(1, codes.ndim) if scale.worlds[0].numel() > 1 else None
    zero, floor = _zero_point(c), floor_of(np.dtype(c.node.inputs[1].dtype))
    channels = scale.worlds[0].numel()
    if not isinstance(codes, Codes):
        if not codes.known:
            raise Unsupported("integer codes that are computed, not stored or quantised")
        shifted = c(operator.sub, codes, zero) if zero else codes
        factor = (codes.worlds[0].numel() / channels * 127) ** -0.5
        result: Value = c(stored_codes, shifted, scale, axis, factor, floor)
        return result
    assert codes.source is not None
    quantize = c.node.inputs[0].inputs[0]
    if codes.scale is not scale or [t.name for t in quantize.inputs[1:]] != [t.name for t in c.node.inputs[1:]]:
        raise Unsupported("its QuantizeLinear has another scale or zero point")
    low, high = _range(c, quantize, codes)
    x, bounds = codes.source, tuple[str, ...]()
    if isinstance(codes.source, Clipped):
        assert codes.source.source is not None
        x, bounds = codes.source.source, codes.source.bounds
    batched = c.builder.batches[0] if len({w.numel() for w in x.worlds}) > 1 else 1
    count = max(1, x.worlds[0].numel() // batched // channels)
    if x.known and scale.known:
        shaped = scale if axis is None else c(_along, scale, x.ndim, axis)
        rounded: Value = c(fake_quantise, x, shaped, low - zero, high - zero, 1.0, floor)
        return rounded
    quantiser = Quantiser(name, codes.stored or None, axis, low - zero, high - zero, count, floor)
    quantiser.bounds = bounds
    return c.builder.module(f"quantiser_{len(c.builder.modules)}", quantiser, x, scale)


def _plain(c: Call) -> None:
    if c.attr("block_size", 0):
        raise Unsupported("a scale per block of a channel is not supported")


def _weight_behind(c: Call) -> str:
    tensor = c.node.inputs[0]
    while tensor.inputs and tensor.inputs[0].op in ("Identity", "Cast", "Transpose"):
        tensor = tensor.inputs[0].inputs[0]
    return "" if tensor.inputs or not hasattr(tensor, "values") else str(tensor.name)


def _zero_point(c: Call) -> int:
    if not c.has(2):
        return 0
    values = c.x(2).worlds[0]
    if not c.x(2).uniform or bool((values != values.reshape(-1)[:1]).any()):
        raise Unsupported("zero points that differ from channel to channel")
    return int(values.reshape(-1)[0])


def _range(c: Call, quantize: Node, codes: Codes) -> tuple[int, int]:
    """The codes' range: that of their type, or of a narrower format that it carries."""
    kind = np.dtype(c.node.inputs[2].dtype).name if c.has(2) else "uint8"
    fmt = natural(kind)
    if fmt is not None and isinstance(codes.source, Clipped):
        fmt = activation_format(quantize)
    elif fmt is not None and codes.stored:
        found = trace(quantize.inputs[0])
        scale = values_of(quantize.inputs[1])
        if found is not None:
            axis = int(quantize.attrs.get("axis", 1)) if scale.size > 1 else None
            fmt = format_of(kind, quantized(found.view.read(values_of(found.weight)), scale, fmt, axis))
    if fmt is None or fmt.grid:
        raise Unsupported(f"codes of type {kind} are not supported")
    return int(fmt.lowest), int(fmt.largest)


ROWS = (Row("QuantizeLinear", 10, _quantize), Row("DequantizeLinear", 10, _dequantize))
