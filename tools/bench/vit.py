"""A ViT with random weights whose Linears are made by a factory: one network, every format; torch alone.

    x = patches + positions;  x += proj(attention(qkv(LN x)));  x += fc2(gelu(fc1(LN x)));  logits = head(LN x[:, 0])

The integer forms have the Q/DQ pairs of `qdq-int8{attention=false}`: inputs and weights of the four Linears of a block,
and with `outputs` also each Linear's output (`profile=sparse-int8`). GELU and the quantiser after it belong to fc1's
tail. Scales come from one float pass over random images, weights are 2:4 by magnitude. Limits: figures of time, not of
accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from gpusq_onnx.runtime.kernels.arithmetic import Tail, quantise
from gpusq_onnx.runtime.kernels.choose import Chooser
from gpusq_onnx.runtime.kernels.float8 import Float8Linear, float8_scale, to_float8


def linears_of(c: int) -> dict[str, tuple[int, int]]:
    """[N, K] of the four Linears of a block of width `c`."""
    return {"qkv": (3 * c, c), "proj": (c, c), "fc1": (4 * c, c), "fc2": (c, 4 * c)}


class NetworkShape(Protocol):
    """What a benchmark asks of a shape."""

    @property
    def width(self) -> int:
        """Of the first block."""

    @property
    def image(self) -> int:
        """Side in pixels."""

    @property
    def products(self) -> dict[str, tuple[int, int, int, bool]]:
        """(rows an image, N, K, whether GELU follows) of each kind of Linear."""

    def network(self, seed: int = 0) -> Network:
        """With random weights."""


@dataclass(frozen=True)
class Shape:
    """Width, depth, heads, image and patch side, and class tokens (DeiT's distilled form has two)."""

    width: int
    depth: int
    heads: int
    image: int = 224
    patch: int = 16
    extra: int = 1

    @property
    def tokens(self) -> int:
        """Patches and class tokens."""
        return (self.image // self.patch) ** 2 + self.extra

    def network(self, seed: int = 0) -> Vit:
        """With random weights."""
        return Vit(self, seed)

    @property
    def products(self) -> dict[str, tuple[int, int, int, bool]]:
        """(rows an image, N, K, whether GELU follows) of each kind of Linear."""
        return {name: (self.tokens, n, k, name == "fc1") for name, (n, k) in linears_of(self.width).items()}


MODELS = {
    "vit_base": Shape(768, 12, 12),
    "deit_base": Shape(768, 12, 12, extra=2),
    "deit_small": Shape(384, 12, 6, extra=2),
    "tiny": Shape(64, 2, 2, image=32, patch=8),
}


class Linear(nn.Module):
    """A float Linear that notes the largest input and output while `noting`; GELU after it where asked."""

    def __init__(self, n: int, k: int, *, gelu: bool, random: torch.Generator) -> None:
        super().__init__()
        weight = torch.randn(n, k, generator=random) * k**-0.5
        groups = weight.view(n, k // 4, 4)
        groups.scatter_(2, groups.abs().argsort(2)[:, :, :2], 0.0)
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(torch.randn(n, generator=random) * 0.02)
        self.gelu, self.noting = gelu, False
        self.largest = {"in": 0.0, "middle": 0.0, "out": 0.0}

    def forward(self, x: Tensor) -> Tensor:
        y = functional.linear(x, self.weight, self.bias)
        z = functional.gelu(y) if self.gelu else y
        if self.noting:
            for name, value in (("in", x), ("middle", y), ("out", z)):
                self.largest[name] = max(self.largest[name], float(value.abs().max()))
        return z


class Integer(nn.Module):
    """A quantised Linear: float or INT8 codes in; out what its tail gives."""

    def __init__(self, kernel: nn.Module, scale: Tensor) -> None:
        super().__init__()
        self.kernel = kernel
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        codes = x if x.dtype == torch.int8 else quantise(x, self.scale)
        y: Tensor = self.kernel(codes.reshape(-1, codes.shape[-1]))
        return y.reshape(*x.shape[:-1], y.shape[-1])


class Float8(Integer):
    """The same in E4M3."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.kernel(to_float8(x, self.scale).reshape(-1, x.shape[-1]))
        return y.reshape(*x.shape[:-1], y.shape[-1])


class Block(nn.Module):
    """One block on [B, tokens, width]; its Linears, `linears`, are replaced by name."""

    linears = ("qkv", "proj", "fc1", "fc2")

    def __init__(self, width: int, heads: int, tokens: int, random: torch.Generator) -> None:
        super().__init__()
        self.heads, self.tokens = heads, tokens
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        for name, (n, k) in linears_of(width).items():
            setattr(self, name, Linear(n, k, gelu=name == "fc1", random=random))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x))
        return x + self.fc2(self.fc1(self.norm2(x)))

    def attend(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        heads = functional.scaled_dot_product_attention(q, k, v)
        y: Tensor = self.proj(heads.transpose(1, 2).reshape(batch, tokens, width))
        return y


class Network(nn.Module):
    """A network of blocks, each with the names of its Linears, `linears`, and its rows an image, `tokens`."""

    blocks: nn.ModuleList
    shape: NetworkShape


class Vit(Network):
    """Images [B, 3, S, S] to logits [B, 1000]."""

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        self.shape = shape
        self.embed = nn.Conv2d(3, shape.width, shape.patch, shape.patch)
        self.positions = nn.Parameter(torch.randn(1, shape.tokens, shape.width, generator=random) * 0.02)
        self.blocks = nn.ModuleList(Block(shape.width, shape.heads, shape.tokens, random) for _ in range(shape.depth))
        self.norm, self.head = nn.LayerNorm(shape.width), nn.Linear(shape.width, 1000)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images).flatten(2).transpose(1, 2)
        x = functional.pad(x, (0, 0, self.shape.extra, 0)) + self.positions
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x)[:, 0])
        return logits


def noted(shape: NetworkShape, images: Tensor, seed: int = 0) -> Network:
    """A float network that has seen `images`, so that its integer forms have scales."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = shape.network(seed).eval()
    linears = [module for module in network.modules() if isinstance(module, Linear)]
    for linear in linears:
        linear.noting = True
    with torch.no_grad():
        network(images)
    for linear in linears:
        linear.noting = False
    return network


def integer(
    network: Network, batch: int, chooser: Chooser, dtype: torch.dtype, *, outputs: bool, ways: Sequence[str]
) -> Network:
    """Replace the Linears of a noted network by INT8 kernels, in place; all else in `dtype` on the chooser's device."""
    network.to(chooser.device, dtype)
    for block in network.blocks:
        for name in block.linears:
            linear = getattr(block, name)
            step = torch.tensor(linear.largest["in"] / 127)
            w = linear.weight.detach().float().cpu()
            scale = w.abs().amax(1) / 127
            middle = torch.tensor(linear.largest["middle"] / 127) if outputs else None
            out = torch.tensor(block.fc2.largest["in"] / 127) if linear.gelu else None
            bias, act = linear.bias.detach().cpu(), "gelu" if linear.gelu else ""
            tail = Tail(step * scale, bias, middle=middle, activation=act, out=out, dtype=dtype)
            kernel = chooser.build(
                quantise(w, scale[:, None], -127), tail, batch * block.tokens, is_sparse=True, ways=ways
            )
            setattr(block, name, Integer(kernel, step).to(chooser.device))
    return network


def float8(network: Network, device: torch.device) -> Network:
    """Replace the Linears of a noted network by FP8 ones, in place; all else in BF16."""
    network.to(device, torch.bfloat16)
    for block in network.blocks:
        for name in block.linears:
            linear = getattr(block, name)
            scale = float8_scale(torch.tensor(linear.largest["in"] / 127))
            w, bias = linear.weight.detach().float(), linear.bias.detach()
            act = "gelu" if linear.gelu else ""
            tail = Tail(torch.ones_like(bias), bias, activation=act, dtype=torch.bfloat16)
            setattr(block, name, Float8(Float8Linear(w.cpu(), scale, tail.cpu()), scale).to(device))
    return network
