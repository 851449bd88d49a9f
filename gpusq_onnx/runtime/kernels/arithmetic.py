"""Quantising, and what follows an integer product, as plain torch functions that torch.compile can fuse.

    quantise     q = clamp(round(x / s), low, high), round half to even (ONNX QuantizeLinear, zero point 0)
    tail         y = alpha p + bias;  y = s_m quantise(y, s_m);  y = gelu(y);  q = quantise(y, s_o)
                 each step but the first only where the graph has it

All in FP32 whatever the inputs' type. The division is a division: x * (1 / s) rounds otherwise near ties.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

LOW, HIGH = -128, 127
Activation = Literal["", "gelu", "gelu_tanh", "relu"]


def quantise(x: Tensor, scale: Tensor | float, low: int = LOW, high: int = HIGH) -> Tensor:
    """INT8 codes of `x` (any shape, float); `scale` is positive, one element or broadcastable to `x`."""
    return torch.clamp(torch.round(x.float() / scale), low, high).to(torch.int8)


def dequantise(codes: Tensor, scale: Tensor | float, dtype: torch.dtype = torch.float32) -> Tensor:
    """The values that INT8 codes stand for."""
    return (codes.float() * scale).to(dtype)


def activate(y: Tensor, activation: Activation) -> Tensor:
    """The activation by name; "" is none. "gelu" is the form with erf, "gelu_tanh" its approximation."""
    if activation == "":
        return y
    if activation == "relu":
        return functional.relu(y)
    return functional.gelu(y, approximate="tanh" if activation == "gelu_tanh" else "none")


def padded_rows(x: Tensor, multiple: int, least: int = 0) -> Tensor:
    """`x`[M, K] with rows of zeros after it, up to a multiple of `multiple` and `least` rows."""
    rows = max(least, -(-x.shape[0] // multiple) * multiple)
    return x if rows == x.shape[0] else functional.pad(x, (0, 0, 0, rows - x.shape[0]))


class Tail(nn.Module):
    """What follows the product of one Linear.

    Args:
        alpha: float32 [N], s_x s_w.
        bias: float [N], or None.
        middle: scale (> 0) of a Q/DQ pair on the Linear's output, before the activation; None: there is none.
        activation: what follows.
        out: scale (> 0) of the next quantiser, whose INT8 codes are then the result; None: a float result.
        dtype: the type of a float result.
    """

    alpha: Tensor
    bias: Tensor | None
    middle: Tensor | None
    out: Tensor | None

    def __init__(
        self,
        alpha: Tensor,
        bias: Tensor | None = None,
        *,
        middle: Tensor | None = None,
        activation: Activation = "",
        out: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        for name, value in {"alpha": alpha, "bias": bias, "middle": middle, "out": out}.items():
            self.register_buffer(name, None if value is None else value.detach().float())
        self.activation: Activation = activation
        self.dtype = dtype

    def forward(self, product: Tensor) -> Tensor:
        """From the integer product [M, N]."""
        y = product.float() * self.alpha
        return self.after(y if self.bias is None else y + self.bias)

    def after(self, y: Tensor) -> Tensor:
        """From `y` = alpha product + bias."""
        if self.middle is not None:
            y = dequantise(quantise(y, self.middle), self.middle)
        return self.finish(y)

    def finish(self, y: Tensor) -> Tensor:
        """From after the middle quantiser on."""
        y = activate(y, self.activation)
        return y.to(self.dtype) if self.out is None else quantise(y, self.out)

    @property
    def first_step(self) -> Tensor | None:
        """The scale of a quantiser right after the bias, which a kernel that writes INT8 can do itself."""
        return self.middle if self.middle is not None or self.activation else self.out

    @property
    def kind(self) -> str:
        """What it does, in a word or two: part of a timing's key."""
        steps = ["bias" if self.bias is not None else "", "q" if self.middle is not None else "", self.activation]
        return "+".join([*filter(None, steps), "int8" if self.out is not None else str(self.dtype).split(".")[-1]])
