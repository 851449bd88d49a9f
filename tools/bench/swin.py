"""A Swin transformer with random weights, whose Linears are made by a factory as those of `tools.bench.vit`.

    x = x + proj(window attention(qkv(LN x)));  x = x + fc2(gelu(fc1(LN x)))    windows shifted in every other block
    x = reduction(LN [x00, x10, x01, x11])                                      between stages

Source: Swin Transformer (arXiv 2103.14030), and timm's order of operations. Limits: square images whose side the
windows divide at each stage; figures of time, not of accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from tools.bench.vit import Block, Linear, Network


@dataclass(frozen=True)
class SwinShape:
    """Width of the first stage, blocks and heads of each, image, patch and window sides."""

    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    image: int = 224
    patch: int = 4
    window: int = 7

    @property
    def stages(self) -> list[tuple[int, int]]:
        """(width, side in tokens) of each."""
        return [(self.width << stage, self.image // self.patch >> stage) for stage in range(len(self.depths))]

    @property
    def products(self) -> dict[str, tuple[int, int, int, bool]]:
        """(rows an image, N, K, whether GELU follows) of each kind of Linear."""
        found = {}
        for number, (c, side) in enumerate(self.stages, 1):
            shapes = {"qkv": (3 * c, c), "proj": (c, c), "fc1": (4 * c, c), "fc2": (c, 4 * c)}
            found |= {f"stage{number}.{name}": (side * side, n, k, name == "fc1") for name, (n, k) in shapes.items()}
        for number, ((c, _), (_, side)) in enumerate(pairwise(self.stages), 1):
            found[f"stage{number}.reduction"] = (side * side, 2 * c, 4 * c, False)
        return found

    def network(self, seed: int = 0) -> Swin:
        """With random weights."""
        return Swin(self, seed)


class WindowBlock(Block):
    """A block on [B, side², C] whose attention sees windows, shifted by `shift`."""

    def __init__(self, width: int, heads: int, side: int, window: int, shift: int, random: torch.Generator) -> None:
        super().__init__(width, heads, side * side, random)
        self.side, self.window, self.shift = side, window, shift
        bias = torch.randn(1, heads, window**2, window**2, generator=random) * 0.02
        self.register_buffer("mask", bias + not_neighbours(side, window, shift)[:, None])

    def attend(self, x: Tensor) -> Tensor:
        batch, _, width = x.shape
        x = x.view(batch, self.side, self.side, width)
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        x = in_windows(x, self.window)
        qkv = self.qkv(x).unflatten(3, (3, self.heads, width // self.heads))
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).unbind(0)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + self.mask.to(q.dtype)
        heads = torch.softmax(scores, -1) @ v
        x = self.proj(heads.transpose(2, 3).flatten(3))
        x = in_image(x, self.window, self.side)
        if self.shift:
            x = x.roll((self.shift, self.shift), (1, 2))
        return x.reshape(batch, self.side**2, width)


class Merge(nn.Module):
    """Four neighbours [B, side², C] to one [B, side²/4, 2 C]."""

    linears = ("reduction",)

    def __init__(self, width: int, side: int, random: torch.Generator) -> None:
        super().__init__()
        self.side, self.tokens = side, side * side // 4
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = Linear(2 * width, 4 * width, gelu=False, random=random)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, width = x.shape
        x = x.view(batch, self.side // 2, 2, self.side // 2, 2, width).permute(0, 1, 3, 4, 2, 5)
        y: Tensor = self.reduction(self.norm(x.reshape(batch, self.tokens, 4 * width)))
        return y


class Swin(Network):
    """Images [B, 3, S, S] to logits [B, 1000]."""

    def __init__(self, shape: SwinShape, seed: int = 0) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        self.shape = shape
        self.embed = nn.Conv2d(3, shape.width, shape.patch, shape.patch)
        self.first_norm = nn.LayerNorm(shape.width)
        self.blocks = nn.ModuleList()
        for stage, (width, side) in enumerate(shape.stages):
            for number in range(shape.depths[stage]):
                shift = shape.window // 2 if number % 2 and side > shape.window else 0
                self.blocks.append(WindowBlock(width, shape.heads[stage], side, shape.window, shift, random))
            if stage + 1 < len(shape.depths):
                self.blocks.append(Merge(width, side, random))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1000)

    def forward(self, images: Tensor) -> Tensor:
        x = self.first_norm(self.embed(images).flatten(2).transpose(1, 2))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x).mean(1))
        return logits


def in_windows(x: Tensor, window: int) -> Tensor:
    """[B, S, S, C] to [B, windows, window², C]."""
    batch, side, _, width = x.shape
    x = x.view(batch, side // window, window, side // window, window, width)
    return x.transpose(2, 3).reshape(batch, -1, window * window, width)


def in_image(x: Tensor, window: int, side: int) -> Tensor:
    """[B, windows, window², C] to [B, S, S, C]."""
    batch, _, _, width = x.shape
    x = x.view(batch, side // window, side // window, window, window, width)
    return x.transpose(2, 3).reshape(batch, side, side, width)


def not_neighbours(side: int, window: int, shift: int) -> Tensor:
    """[windows or 1, window², window²]: 0 where two tokens of a window are neighbours in the image, else -100."""
    if not shift:
        return torch.zeros(1, window * window, window * window)
    place = torch.arange(side)
    part = (place >= side - window).int() + (place >= side - shift).int()
    parts = in_windows((3 * part[:, None] + part)[None, :, :, None], window)[0, :, :, 0]
    return torch.where(parts[:, :, None] == parts[:, None, :], 0.0, -100.0)


MODELS = {
    "swin_tiny": SwinShape(96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "tiny_swin": SwinShape(32, (2, 2), (2, 4), image=32, window=4),
}
