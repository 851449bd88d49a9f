"""Q/DQ pairs with learned scales (LSQ), and the rows of the table that make them.

    Q(x, s) -> DQ                        a Quantiser: one scale, one a channel, or in blocks; integers and float grids
    codes, s -> DQ                       codes times their scale: the scale learns, the codes do not
    s8, g -> DQ -> scale of either       block scales under one number: nothing of them learns
    TRT_FP4DynamicQuantize -> DQ, DQ     a DynamicQuantiser: nothing to learn

Arithmetic and gradients are in `torchgraph.rounding`. n, the elements that share a scale, is counted for one image (of
the weight, for weights), so that neither the batch size nor the number of processes changes a step. s is raised to a
floor above zero in the forward pass, its gradient goes through. Zero has a level: pruned weights stay exactly zero.

Source: docs/method.md, "Learned scales"; the ONNX operator QuantizeLinear-21. Limits: integers of 2 to 16 bits, FP8 and
FP4; one zero point a tensor; blocks that divide the tensor.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpusq_onnx.graph.model import Node, type_name, values_of
from gpusq_onnx.graph.operators import FP4_QUANTISER
from gpusq_onnx.graph.qdq.codes import scales_of
from gpusq_onnx.graph.qdq.dynamic import FORMAT
from gpusq_onnx.graph.qdq.quantize_nodes import activation_format, code_type, is_grid_clip
from gpusq_onnx.graph.trace import trace
from gpusq_onnx.quant.formats import FORMATS, Format, format_of, natural
from gpusq_onnx.quant.formats import quantize as quantized
from gpusq_onnx.torchgraph.builder import Unsupported, Value
from gpusq_onnx.torchgraph.call import Call, OperatorRow
from gpusq_onnx.torchgraph.rounding import (
    FloatGrid,
    along,
    fake_quantise,
    gradient_factor,
    in_blocks,
    quantise_at_run_time,
    stored_codes,
)


def floor_of(dtype: np.dtype[Any]) -> float:
    """The least scale of a stored type: a normal number (TensorRT rejects zero) that can still be divided by."""
    return 2.0**-14 if dtype.name == "float16" else 2.0**-60


class Quantiser(torch.nn.Module):
    """One Q/DQ pair; called with the tensor and its scale parameter.

    Attributes:
        scale: the tensor of scales in the ONNX graph: an initializer, or block scales made of two.
        weight: the weight's initializer, None for an activation.
        axis: of the per-channel scale, or along which blocks run; None for one scale.
        block: elements that share a scale along `axis`; 0: no blocks.
        qmin, qmax: range of q - z.
        grid: of a float type; None: the integers.
        bounds: the initializers of the Clip that keeps an activation within the range; none where its type does.
        enabled: off, the tensor passes as it is (the float twin).
    """

    def __init__(
        self,
        scale: str,
        weight: str | None,
        axis: int | None,
        span: tuple[float, float],
        count: int,
        floor: float,
        grid: FloatGrid | None = None,
        block: int = 0,
    ) -> None:
        super().__init__()
        self.scale, self.weight, self.axis, self.block = scale, weight, axis, block
        (self.qmin, self.qmax), self.grid = span, grid
        self.factor, self.floor, self.enabled = gradient_factor(count, self.qmax, grid), floor, True
        self.bounds: tuple[str, ...] = ()

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        """`x` rounded to the scale's grid, same shape and type."""
        if not self.enabled:
            return x
        # strides that differ between x and its gradient take the slow path of every pass
        seen, axis = x.contiguous(), self.axis
        if axis is None:
            shaped = scale.reshape(())
        elif self.block:
            seen, shaped = in_blocks(seen, axis, self.block), scale.unsqueeze(axis + 1)
        else:
            shaped = along(scale, x.ndim, axis)
        rounded = fake_quantise(seen, shaped, self.qmin, self.qmax, self.factor, self.floor, self.grid)
        return rounded.reshape(x.shape) if self.block else rounded

    def extra_repr(self) -> str:
        """What nn.Module prints."""
        return f"{self.weight or 'activation'}, scale={self.scale}, {self.qmin}..{self.qmax}, enabled={self.enabled}"


class DynamicQuantiser(Quantiser):
    """An activation whose block scales are taken at run time; called with the tensor and the number over them."""

    def __init__(self, outer: str, block: int, fmt: Format) -> None:
        super().__init__(outer, None, None, (fmt.lowest, fmt.largest), 1, 0.0, FloatGrid.of(fmt), block)
        self.format, self.scales = fmt, FORMATS[fmt.scales]

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        """`x` rounded, same shape and type."""
        return quantise_at_run_time(x, scale, self.block, self.format, self.scales) if self.enabled else x


@dataclass(eq=False)
class Codes(Value):
    """The output of a QuantizeLinear: no tensor of its own, only what the DequantizeLinear after it needs."""

    source: Value | None = None
    scale: Value | None = None
    stored: str = ""


@dataclass(eq=False)
class AtRunTime(Value):
    """An output of a node that quantises at run time, or of the DequantizeLinear of its block scales."""

    source: Value | None = None
    outer: Value | None = None


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
    x, scale = c.x(0), c.x(1)
    shadow = tuple(torch.empty(world.shape, dtype=torch.int8, device="meta") for world in x.worlds)
    return Codes(shadow, False, None, None, x, scale, _weight_of(c))


def _quantize_at_run_time(c: Call) -> list[Value]:
    x, outer = c.x(0), c.x(1)
    shadow = tuple(torch.empty(world.shape, dtype=torch.int8, device="meta") for world in x.worlds)
    return [AtRunTime(shadow, False, None, None, x, outer) for _ in range(2)]


def _dequantize(c: Call) -> Value:
    codes, scale, name = c.x(0), c.x(1), str(c.node.inputs[1].name)
    if isinstance(codes, AtRunTime):
        return _dequantize_at_run_time(c, codes, scale)
    block = int(c.attr("block_size", 0))
    axis = int(c.attr("axis", 1)) % max(1, codes.ndim) if scale.worlds[0].numel() > 1 else None
    zero, floor = _zero_point(c), floor_of(np.dtype(c.node.inputs[1].dtype))
    channels = scale.worlds[0].numel()
    if not isinstance(codes, Codes):
        if not codes.known:
            raise Unsupported("integer codes that are computed, not stored or quantised")
        _require_whole_blocks(codes, axis, block)
        shifted = c(operator.sub, codes, zero) if zero else codes
        fmt = natural(type_name(c.node.inputs[0])) if hasattr(c.node.inputs[0], "values") else None
        largest, grid = (127.0, None) if fmt is None else (fmt.largest, FloatGrid.of(fmt))
        # scales that are computed have their factor where they are
        factor = 1.0 if c.node.inputs[1].inputs else gradient_factor(codes.worlds[0].numel() // channels, largest, grid)
        result: Value = c(stored_codes, shifted, scale, axis, factor, floor, block)
        return result
    assert codes.source is not None
    quantize = c.node.inputs[0].inputs[0]
    if codes.scale is not scale or [t.name for t in quantize.inputs[1:]] != [t.name for t in c.node.inputs[1:]]:
        raise Unsupported("its QuantizeLinear has another scale or zero point")
    if int(quantize.attrs.get("block_size", 0)) != block:
        raise Unsupported("its QuantizeLinear has other blocks")
    low, high, grid = _range(quantize, codes)
    x, bounds = codes.source, tuple[str, ...]()
    if isinstance(codes.source, Clipped):
        assert codes.source.source is not None
        x, bounds = codes.source.source, codes.source.bounds
    batched = c.builder.batches[0] if len({w.numel() for w in x.worlds}) > 1 else 1
    count = max(1, x.worlds[0].numel() // batched // channels)
    _require_whole_blocks(x, axis, block)
    quantiser = Quantiser(name, codes.stored or None, axis, (low - zero, high - zero), count, floor, grid, block)
    if x.known and scale.known:
        rounded: Value = c(quantiser.forward, x, scale)
        return rounded
    quantiser.bounds = bounds
    return c.builder.module(f"quantiser_{len(c.builder.modules)}", quantiser, x, scale)


def _dequantize_at_run_time(c: Call, codes: AtRunTime, scale: Value) -> Value:
    if not isinstance(scale, AtRunTime):  # of the block scales: what is made of them is part of the quantiser
        return codes
    assert codes.source is not None and codes.outer is not None
    maker = c.node.inputs[0].inputs[0]
    quantiser = DynamicQuantiser(str(maker.inputs[1].name), int(c.attr("block_size", FORMAT.blocks[0])), FORMAT)
    return c.builder.module(f"quantiser_{len(c.builder.modules)}", quantiser, codes.source, codes.outer)


def _require_whole_blocks(x: Value, axis: int | None, block: int) -> None:
    if block and (axis is None or x.worlds[0].shape[axis] % block):
        raise Unsupported(f"blocks of {block} that do not divide the tensor {list(x.worlds[0].shape)}")


def _weight_of(c: Call) -> str:
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


def _range(quantize: Node, codes: Codes) -> tuple[float, float, FloatGrid | None]:
    """The codes' range and grid: those of their type, or of a narrower format that it carries."""
    kind = code_type(quantize)
    fmt = natural(kind)
    if fmt is not None and isinstance(codes.source, Clipped):
        fmt = activation_format(quantize)
    elif fmt is not None and codes.stored and not fmt.grid:
        found = trace(quantize.inputs[0])
        if found is not None:
            fmt = format_of(kind, quantized(found.view.read(values_of(found.weight)), scales_of(quantize), fmt))
    if fmt is None:
        raise Unsupported(f"codes of type {kind} are not supported")
    return fmt.lowest, fmt.largest, FloatGrid.of(fmt)


ROWS = (
    OperatorRow("QuantizeLinear", 10, _quantize),
    OperatorRow("DequantizeLinear", 10, _dequantize),
    OperatorRow(FP4_QUANTISER, 1, _quantize_at_run_time),
)
