"""The stand-in for DETR: objects and their outlines in scenes, by queries; scored by box and mask AP.

    c2, c4, c8 = convolutions of stride 2 each             [B, 32, 24, 24], [B, 64, 12, 12], [B, 128, 6, 6]
    memory     = encoder(c8 + P)                           2 layers of self-attention; P: sines of the place
    queries    = decoder(learned, memory)                  2 layers; query q starts at one of 4 x 4 places
    logits     = Linear(queries)                           [B, 16, 11], the last class "nothing"
    boxes      = sigmoid(place of q + MLP(queries))        [B, 16, 4], centre x, centre y, width, height, 0..1
    masks      = MLP(queries) · pixels(c2, c4, memory)     [B, 16, 24, 24], logits

    loss  = CE of the logits (nothing weighs 0.2) + 5 L1 + 2 (1 - GIoU) of the boxes + BCE + Dice of the masks,
            summed over the decoder's layers, a query paired with at most one object by the least
            -p(class) + 5 L1 + 2 (1 - GIoU) in all (the Hungarian method)

Source: DETR (arXiv 2005.12872); masks by dot products, as in MaskFormer (arXiv 2107.06278). Ours: queries have places,
as in Anchor DETR (arXiv 2109.07107), with which a small one learns in minutes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional

from tools.standins.scenes import CLASSES, SIDE, Scene, scene
from tools.standins.training import Recipe, train

WIDTH, HEADS, GRID = 128, 4, 4
QUERIES, NOTHING = GRID * GRID, 0.2
MASK = SIDE // 2
SCENES, BATCH = 10_000, 50
RECIPE = Recipe(epochs=8, steps=SCENES // BATCH, lr=1e-3)

Target = tuple[Tensor, Tensor, Tensor]
"""Of one scene with K objects: digits int64[K], boxes [K, 4] as the model gives them, masks [K, 24, 24], 0..1."""


def conv(inner: int, outer: int, stride: int) -> nn.Sequential:
    """3 x 3, normalised over the batch."""
    return nn.Sequential(nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU())


def mlp(inner: int, outer: int) -> nn.Sequential:
    """Two layers."""
    return nn.Sequential(nn.Linear(inner, inner), nn.ReLU(), nn.Linear(inner, outer))


def sines(side: int, width: int) -> Tensor:
    """[side², width]: half of it for y, half for x; sines and cosines of the centres of a grid's cells."""
    angles = (torch.arange(side)[:, None] + 0.5) / side * math.pi * 2 ** torch.linspace(0, 3, width // 4)
    waves = torch.cat([angles.sin(), angles.cos()], 1)
    rows, columns = waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)
    return torch.cat([rows, columns], 2).reshape(side * side, width)


class Attention(nn.Module):
    """Multi-head attention, with Linears of its own for queries, keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch = q.shape[0]
        heads = [
            linear(x).reshape(batch, -1, HEADS, WIDTH // HEADS).transpose(1, 2)
            for linear, x in ((self.q, q), (self.k, k), (self.v, v))
        ]
        y = functional.scaled_dot_product_attention(*heads)
        found: Tensor = self.out(y.transpose(1, 2).reshape(batch, -1, WIDTH))
        return found


class Layer(nn.Module):
    """Self-attention, attention to the memory where there is one, two Linears; normalised after each, as in DETR."""

    def __init__(self, cross: bool) -> None:
        super().__init__()
        self.self_attn = Attention()
        self.cross_attn = Attention() if cross else None
        self.fc1, self.fc2 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3 if cross else 2))

    def forward(self, x: Tensor, place: Tensor, memory: Tensor | None = None, at: Tensor | None = None) -> Tensor:
        x = self.norms[0](x + self.self_attn(x + place, x + place, x))
        if self.cross_attn is not None and memory is not None:
            x = self.norms[1](x + self.cross_attn(x + place, memory + at, memory))
        y: Tensor = self.norms[-1](x + self.fc2(torch.relu(self.fc1(x))))
        return y


class Detector(nn.Module):
    """Images [B, 3, 48, 48] in [-1, 1] to logits, boxes and masks: see above."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 32, 2)
        self.middle = nn.Sequential(conv(32, 64, 2), conv(64, 64, 1))
        self.last = nn.Sequential(conv(64, WIDTH, 2), conv(WIDTH, WIDTH, 1))
        self.encoder = nn.ModuleList(Layer(cross=False) for _ in range(2))
        self.decoder = nn.ModuleList(Layer(cross=True) for _ in range(2))
        self.queries = nn.Parameter(torch.empty(QUERIES, WIDTH).normal_(std=0.02))
        self.classes, self.box, self.mask = nn.Linear(WIDTH, CLASSES + 1), mlp(WIDTH, 4), mlp(WIDTH, 64)
        self.sides = nn.ModuleList(nn.Conv2d(width, 64, 1) for width in (32, 64, WIDTH))
        self.register_buffer("at", sines(SIDE // 8, WIDTH), persistent=False)
        self.register_buffer("place", sines(GRID, WIDTH), persistent=False)
        self.register_buffer("start", _starts(), persistent=False)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.layers(pixel_values)[-1]

    def layers(self, images: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Logits, boxes and masks after each layer of the decoder."""
        c2 = self.stem(images)
        c4 = self.middle(c2)
        c8 = self.last(c4)
        memory = c8.flatten(2).transpose(1, 2)
        for layer in self.encoder:
            memory = layer(memory, self.at)
        deep = memory.transpose(1, 2).reshape(c8.shape)
        pixels = self.sides[1](c4) + functional.interpolate(self.sides[2](deep), scale_factor=2.0, mode="nearest")
        pixels = self.sides[0](c2) + functional.interpolate(pixels, scale_factor=2.0, mode="nearest")
        x = self.queries.expand(images.shape[0], -1, -1)
        found = []
        for layer in self.decoder:
            x = layer(x, self.place, memory, self.at)
            masks = (self.mask(x) @ pixels.flatten(2)).reshape(-1, QUERIES, MASK, MASK)
            found.append((self.classes(x), (self.box(x) + self.start).sigmoid(), masks))
        return found


def loss(model: Detector, images: Tensor, targets: list[Target]) -> Tensor:
    """See above; images uint8[B, 48, 48, 3]."""
    return sum((of_layer(*given, targets) for given in model.layers(as_input(images))), torch.zeros(()))


def as_input(images: Tensor) -> Tensor:
    """uint8[B, S, S, 3] to what the models take."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def target(scene: Scene) -> Target:
    """What the loss asks for."""
    x0, y0, x1, y1 = (torch.from_numpy(scene.boxes).float() / SIDE).unbind(1)
    boxes = torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], 1)
    masks = functional.avg_pool2d(torch.from_numpy(scene.masks).float(), SIDE // MASK)
    return torch.from_numpy(scene.digits), boxes, masks


def trained(folder: Path) -> Detector:
    """The model, from the last checkpoint in the folder on."""
    torch.manual_seed(RECIPE.seed)
    model = Detector()
    scenes = [scene("train", number) for number in range(SCENES)]
    images, targets = torch.from_numpy(np.stack([s.image for s in scenes])), [target(s) for s in scenes]

    def batches(generator: torch.Generator) -> Iterator[tuple[Tensor, list[Target]]]:
        for index in torch.randperm(SCENES, generator=generator)[: RECIPE.steps * BATCH].split(BATCH):
            yield images[index], [targets[i] for i in index.tolist()]

    train(model, batches, loss, RECIPE, folder / "detr.training.pt")
    return model


def of_layer(logits: Tensor, boxes: Tensor, masks: Tensor, targets: list[Target]) -> Tensor:
    """The loss of one layer's answers."""
    count = sum(len(digits) for digits, _, _ in targets)
    rows, queries = _pairs(logits.detach(), boxes.detach(), targets)
    digits, wanted, shapes = (torch.cat(parts) for parts in zip(*targets, strict=True))
    classes = torch.full(logits.shape[:2], CLASSES)
    classes[rows, queries] = digits
    weights = torch.ones(CLASSES + 1)
    weights[CLASSES] = NOTHING
    found, drawn = boxes[rows, queries], masks[rows, queries]
    box = 5 * (found - wanted).abs().sum() + 2 * (1 - giou(corners(found), corners(wanted))).sum()
    ink = drawn.sigmoid().flatten(1)
    dice = 1 - (2 * (ink * shapes.flatten(1)).sum(1) + 1) / (ink.sum(1) + shapes.flatten(1).sum(1) + 1)
    mask = functional.binary_cross_entropy_with_logits(drawn, shapes) * count + dice.sum()
    return functional.cross_entropy(logits.flatten(0, 1), classes.flatten(), weights) + (box + mask) / count


def _pairs(logits: Tensor, boxes: Tensor, targets: list[Target]) -> tuple[Tensor, Tensor]:
    """Rows of the batch and queries, in the order of the objects."""
    rows, queries = [], []
    shares = logits.softmax(-1)
    for row, (digits, wanted, _) in enumerate(targets):
        near = 2 * giou(corners(boxes[row])[:, None], corners(wanted)[None])
        cost = 5 * torch.cdist(boxes[row], wanted, p=1) - near - shares[row][:, digits]
        query, chosen = linear_sum_assignment(cost.numpy())
        queries += query[np.argsort(chosen)].tolist()
        rows += [row] * len(digits)
    return torch.tensor(rows), torch.tensor(queries)


def corners(boxes: Tensor) -> Tensor:
    """[..., 4] as centre and extent to x0, y0, x1, y1."""
    centre, extent = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - extent / 2, centre + extent / 2], -1)


def giou(one: Tensor, other: Tensor) -> Tensor:
    """Generalised IoU of boxes [..., 4] as corners, -1..1."""
    inside = (torch.min(one[..., 2:], other[..., 2:]) - torch.max(one[..., :2], other[..., :2])).clamp(min=0).prod(-1)
    hull = (torch.max(one[..., 2:], other[..., 2:]) - torch.min(one[..., :2], other[..., :2])).prod(-1)
    union = (one[..., 2:] - one[..., :2]).prod(-1) + (other[..., 2:] - other[..., :2]).prod(-1) - inside
    return inside / union - (hull - union) / hull


def _starts() -> Tensor:
    """[16, 4]: what is added before the sigmoid, so that a query starts at the centre of its cell."""
    centre = (torch.arange(GRID) + 0.5) / GRID
    y, x = torch.meshgrid(centre, centre, indexing="ij")
    return torch.stack([x, y, torch.full_like(x, 0.3), torch.full_like(x, 0.4)], -1).flatten(0, 1).logit()
