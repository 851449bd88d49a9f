"""The stand-in for UPerNet on Swin: a class for every pixel of a scene; scored by mean IoU.

    s1, s2 = stages of `swin.Backbone`, windows of 6             [B, 12, 12, 64], [B, 6, 6, 128]
    p2     = conv3x3 [s2, pooled s2 to 1, 2, 3 and 6 a side]     pyramid pooling
    p1     = conv3x3 (conv1x1 s1 + enlarged p2)                  feature pyramid
    logits = conv1x1 conv3x3 [p1, enlarged p2], enlarged         [B, 11, 48, 48]: nothing, then the ten digits

Source: UPerNet (arXiv 1807.10221), as the heads of mmsegmentation have it. Loss: cross-entropy of all pixels, nothing
weighing 0.3, since most pixels show nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tools.standins.detector import as_input, conv
from tools.standins.scenes import CLASSES, SIDE, scene
from tools.standins.swin import Backbone, Shape
from tools.standins.training import Recipe, train

WIDTH, NOTHING = 64, 0.3
POOLED = (1, 2, 3, 6)
SHAPE = Shape(image=SIDE, window=6)
SCENES, BATCH = 10_000, 50
RECIPE = Recipe(epochs=6, steps=SCENES // BATCH, lr=1e-3)


def pointwise(inner: int, outer: int) -> nn.Sequential:
    """1 x 1, normalised over the batch."""
    return nn.Sequential(nn.Conv2d(inner, outer, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU())


class Segmenter(nn.Module):
    """Images [B, 3, 48, 48] in [-1, 1] to logits [B, 11, 48, 48]."""

    def __init__(self) -> None:
        super().__init__()
        (first, _), (last, side) = SHAPE.stages
        self.backbone = Backbone(SHAPE)
        self.pools = nn.ModuleList(nn.AvgPool2d(side // cells) for cells in POOLED)
        self.pooled = nn.ModuleList(pointwise(last, WIDTH) for _ in POOLED)
        self.bottleneck = conv(last + len(POOLED) * WIDTH, WIDTH, 1)
        self.lateral, self.fpn = pointwise(first, WIDTH), conv(WIDTH, WIDTH, 1)
        self.fuse, self.classes = conv(2 * WIDTH, WIDTH, 1), nn.Conv2d(WIDTH, CLASSES + 1, 1)

    def forward(self, pixel_values: Tensor) -> Tensor:
        fine, coarse = (x.permute(0, 3, 1, 2) for x in self.backbone(pixel_values))
        levels = [
            _enlarged(layer(pool(coarse)), coarse.shape[-1])
            for pool, layer in zip(self.pools, self.pooled, strict=True)
        ]
        deep = _enlarged(self.bottleneck(torch.cat([coarse, *levels], 1)), fine.shape[-1])
        logits = self.classes(self.fuse(torch.cat([self.fpn(self.lateral(fine) + deep), deep], 1)))
        return _enlarged(logits, SIDE)


def trained(folder: Path) -> Segmenter:
    """The model, from the last checkpoint in the folder on."""
    torch.manual_seed(RECIPE.seed)
    model = Segmenter()
    scenes = [scene("train", number) for number in range(SCENES)]
    images = torch.from_numpy(np.stack([s.image for s in scenes]))
    maps = torch.from_numpy(np.stack([s.label_map for s in scenes]))

    def batches(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        for index in torch.randperm(SCENES, generator=generator)[: RECIPE.steps * BATCH].split(BATCH):
            yield images[index], maps[index]

    train(model, batches, loss, RECIPE, folder / "upernet.training.pt")
    return model


def loss(model: nn.Module, images: Tensor, maps: Tensor) -> Tensor:
    """See above; images uint8[B, 48, 48, 3], maps uint8[B, 48, 48]."""
    weights = torch.ones(CLASSES + 1)
    weights[0] = NOTHING
    return functional.cross_entropy(model(as_input(images)), maps.long(), weights)


def _enlarged(x: Tensor, side: int) -> Tensor:
    """[B, C, s, s] to [B, C, side, side], bilinear."""
    if x.shape[-1] == side:
        return x
    return functional.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)
