"""A small Swin transformer with timm's graph, trainable: the stand-in classifier, and the segmenter's backbone.

    x = x + proj(attention in windows(qkv(LN x)));  x = x + fc2(gelu(fc1(LN x)))    every other block's windows shifted
    attention = softmax(q kᵀ / sqrt(d) + B + M) v    B: learned, by relative position and head; M: 0, or -100 where two
                                                     tokens of a shifted window are no neighbours in the image
    x = reduction(LN [x00, x10, x01, x11])           between stages: half the side, twice the width

Source: Swin Transformer (arXiv 2103.14030). Widths are multiples of 64, so that each Linear is pruned and quantised.
Ours: the patch embedding is two overlapping convolutions of stride 2, which learns faster on few small images.
Limits: square images whose side the windows divide at each stage.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tools.bench.swin import in_image, in_windows, not_neighbours
from tools.vit import Mlp


@dataclass(frozen=True)
class Shape:
    """Width of the first stage (doubled at each), blocks a stage, image and window sides; heads are 32 wide."""

    width: int = 64
    depths: tuple[int, ...] = (2, 2)
    image: int = 32
    window: int = 4

    @property
    def stages(self) -> list[tuple[int, int]]:
        """(width, side in tokens) of each."""
        return [(self.width << stage, self.image // 4 >> stage) for stage in range(len(self.depths))]


class WindowAttention(nn.Module):
    """Attention in the windows of [B, side, side, C], moved by `shift` tokens."""

    def __init__(self, width: int, side: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.side, self.window, self.shift = width // 32, side, window, shift
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.bias = nn.Parameter(torch.empty((2 * window - 1) ** 2, self.heads).normal_(std=0.02))
        self.register_buffer("index", _relative(window), persistent=False)
        self.register_buffer("mask", not_neighbours(side, window, shift)[:, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        cut = in_windows(x, self.window)
        batch, windows, tokens, width = cut.shape
        qkv = self.qkv(cut.reshape(-1, tokens, width)).reshape(-1, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        scores = scores + self.bias[self.index].reshape(tokens, tokens, self.heads).permute(2, 0, 1)
        if self.shift:
            scores = scores.reshape(-1, windows, self.heads, tokens, tokens) + self.mask
            scores = scores.reshape(-1, self.heads, tokens, tokens)
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, tokens, width)
        y = in_image(self.proj(y).reshape(batch, windows, tokens, width), self.window, self.side)
        return y.roll((self.shift, self.shift), (1, 2)) if self.shift else y


class SwinBlock(nn.Module):
    """One pre-norm block on [B, side, side, C]."""

    def __init__(self, width: int, side: int, window: int, shift: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, side, window, shift)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class PatchMerging(nn.Module):
    """Four neighbours of [B, side, side, C] to one: [B, side/2, side/2, 2 C]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, side, _, width = x.shape
        x = x.reshape(batch, side // 2, 2, side // 2, 2, width).permute(0, 1, 3, 4, 2, 5)
        y: Tensor = self.reduction(self.norm(x.reshape(batch, side // 2, side // 2, 4 * width)))
        return y


class Backbone(nn.Module):
    """Images [B, 3, S, S] to each stage's tokens, [B, side, side, width], normalised."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        half = shape.width // 2
        self.patch_embed = nn.Sequential(
            nn.Conv2d(3, half, 3, 2, 1), nn.GELU(), nn.Conv2d(half, shape.width, 3, 2, 1)
        )  # fmt: skip
        self.layers, self.merges, self.norms = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for number, ((width, side), depth) in enumerate(zip(shape.stages, shape.depths, strict=True)):
            shift = shape.window // 2 if side > shape.window else 0
            blocks = [SwinBlock(width, side, shape.window, shift * (block % 2)) for block in range(depth)]
            self.merges.append(PatchMerging(width // 2) if number else nn.LayerNorm(width))
            self.layers.append(nn.Sequential(*blocks))
            self.norms.append(nn.LayerNorm(width))

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.patch_embed(images).permute(0, 2, 3, 1)
        found = []
        for merge, blocks, norm in zip(self.merges, self.layers, self.norms, strict=True):
            x = blocks(merge(x))
            found.append(norm(x))
        return found


class Swin(nn.Module):
    """Images [B, 3, 32, 32] in [-1, 1] to logits [B, classes]: the mean of the last stage's tokens, and a Linear."""

    def __init__(self, shape: Shape, classes: int = 10) -> None:
        super().__init__()
        self.backbone = Backbone(shape)
        self.head = nn.Linear(shape.stages[-1][0], classes)

    def forward(self, pixel_values: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone(pixel_values)[-1].mean((1, 2)))
        return logits


def _relative(window: int) -> Tensor:
    """int64[window⁴]: the row of the table of biases of each pair of tokens of a window."""
    place = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
    apart = place[:, :, None] - place[:, None, :] + window - 1
    return (apart[0] * (2 * window - 1) + apart[1]).flatten()
