"""Random looks of images: crops, mirrors, colours, and pairs that are blended or patched.

Each choice is a function of (seed, epoch, place in the epoch's order): no generator runs along, so that a resumed run,
and one that is spread over more processes, sees the same images. Pairs are the places 2j and 2j + 1.

    crop      RandomResizedCrop: area uniform in [crop, 1], log aspect uniform in [log 3/4, log 4/3]
    flip      one image in two, left to right
    jitter j  brightness, contrast and saturation, in that order, each by a factor uniform in [1 - j, 1 + j]
    mixup     x = share a + (1 - share) b, share uniform;  b gets the mirror image of that
    cutmix    a square patch of area 1 - share comes from the other image

Source: torchvision's and timm's transforms of these names. Limits: colours are changed in the model's normalised input,
brightness around the darkest value of the image; inputs that are not images are neither flipped nor coloured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gpusq_onnx.data.source import Box
from gpusq_onnx.learn.objectives import Labels
from gpusq_onnx.learn.settings import AugmentationOptions

_IMAGE, _PAIR = 0, 1  # streams of random numbers
_LOG_ASPECT = math.log(4 / 3)


@dataclass(frozen=True)
class ImageAugmentation:
    """How one image is shown: the crop, whether it is mirrored, and three colour factors."""

    box: Box
    flip: bool
    colour: tuple[float, float, float]


@dataclass(frozen=True)
class Blend:
    """How a pair is mixed: the share that each image keeps, and the corner of the patch (0..1), None for mixup."""

    share: float
    corner: tuple[float, float] | None


def look(settings: AugmentationOptions, seed: int, epoch: int, place: int) -> ImageAugmentation:
    """How the image at `place` of the epoch's order is shown."""
    draw = np.random.default_rng([seed, _IMAGE, epoch, place]).random(8)
    area = settings.crop + (1 - settings.crop) * draw[0]
    aspect = math.exp(_LOG_ASPECT * (2 * draw[1] - 1))
    box = Box(float(area), aspect, float(draw[2]), float(draw[3])) if settings.crop < 1 else Box()
    red, green, blue = (float(1 + settings.jitter * (2 * value - 1)) for value in draw[5:8])
    return ImageAugmentation(box, settings.flip and bool(draw[4] < 0.5), (red, green, blue))


def blend(settings: AugmentationOptions, seed: int, epoch: int, pair: int) -> Blend | None:
    """How the images at the places 2 pair and 2 pair + 1 are mixed; None for as they are."""
    draw = np.random.default_rng([seed, _PAIR, epoch, pair]).random(5)
    if settings.mix == "none" or draw[0] >= settings.mixed:
        return None
    patched = settings.mix == "cutmix" or (settings.mix == "both" and draw[1] < 0.5)
    return Blend(float(draw[2]), (float(draw[3]), float(draw[4])) if patched else None)


def shown(x: Tensor, looks: Sequence[ImageAugmentation]) -> Tensor:
    """Images x[B, C, H, W] or [B, H, W, C] mirrored and coloured as `looks` say; the crop was made when reading."""
    if x.ndim != 4:
        return x
    channels = 1 if x.shape[1] in (1, 3) else 3
    width = 3 if channels == 1 else 2
    flips = [i for i, one in enumerate(looks) if one.flip]
    coloured = any(one.colour != (1.0, 1.0, 1.0) for one in looks)
    if flips or coloured:
        x = x.clone()
    if flips:
        x[flips] = x[flips].flip(width)
    return _coloured(x, looks, channels) if coloured else x


def _coloured(x: Tensor, looks: Sequence[ImageAugmentation], channels: int) -> Tensor:
    factors = torch.tensor([one.colour for one in looks], dtype=torch.float32, device=x.device)
    brightness, contrast, saturation = (f.reshape(-1, 1, 1, 1) for f in factors.unbind(1))
    y, low = x.float(), x.float().amin((1, 2, 3), keepdim=True)
    y = (y - low) * brightness + low
    mean = y.mean((1, 2, 3), keepdim=True)
    y = (y - mean) * contrast + mean
    grey = y.mean(channels, keepdim=True)
    y = (y - grey) * saturation + grey
    return _as(y, x)


def mixed(x: Tensor, places: Sequence[int], blends: Sequence[Blend | None]) -> Tensor:
    """x[B, ...] with the pairs among `places` mixed; blends[i] is that of row i's pair, an odd one out stays."""
    partners = partner_rows(places)
    rows = [i for i, blended in enumerate(blends) if blended is not None and partners[i] != i]
    if not rows:
        return x
    y, own, other = x.clone(), x.float(), x[partners].float()
    for i in rows:
        blended = blends[i]
        assert blended is not None
        if blended.corner is None:
            y[i] = _as(blended.share * own[i] + (1 - blended.share) * other[i], x)
        else:
            patch = _patch(x, blended)
            y[i][patch] = x[partners[i]][patch]
    return y


def mixed_labels(labels: Tensor, places: Sequence[int], blends: Sequence[Blend | None]) -> Labels:
    """The hard labels int64[B] of mixed images."""
    partners = partner_rows(places)
    shares = [1.0 if b is None or partners[i] == i else b.share for i, b in enumerate(blends)]
    return Labels(labels, labels[partners], torch.tensor(shares, device=labels.device))


def partner_rows(places: Sequence[int]) -> list[int]:
    """For each row, the row of the other image of its pair; its own, where the other is not there."""
    rows = {place: row for row, place in enumerate(places)}
    return [rows.get(place ^ 1, row) for row, place in enumerate(places)]


def _patch(x: Tensor, blended: Blend) -> tuple[slice, ...]:
    """The part of one image [C, H, W] or [H, W, C] that comes from the other one."""
    assert blended.corner is not None
    first = 1 if x.shape[1] in (1, 3) else 0
    found = [slice(None)] * (x.ndim - 1)
    for axis, corner in zip((first, first + 1), blended.corner, strict=True):
        size = x.shape[1 + axis]
        side = round(size * math.sqrt(1 - blended.share))
        start = round(corner * (size - side))
        found[axis] = slice(start, start + side)
    return tuple(found)


def _as(y: Tensor, x: Tensor) -> Tensor:
    """`y` in the type of `x`; pixels 0..255 are rounded."""
    return y.to(x.dtype) if x.is_floating_point() else y.round().clamp(0, 255).to(x.dtype)
