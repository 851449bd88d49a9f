"""Scenes with known objects: handwritten digits, tinted, on coloured clouds; boxes and masks are exact.

    background   a 4 x 4 grid of colours about a random one, enlarged smoothly, with noise of 4 % on every pixel
    object       a digit's 8 x 8 image enlarged to 14 to 28 pixels; its mask is where ink > 1/2; those pixels, and no
                 others, get the object's colour, which differs from the background's mean by 0.35 at least
    box          the mask's extent; boxes of one scene do not overlap
    scene        1 to 3 objects on SIDE x SIDE pixels

A split's digits are its own: test scenes hold digits that no training scene holds. Scene i of a split is drawn from a
generator of its own, so it is the same however many are made.

`write` lays a split down as the tool reads it: NAME.png, instances.json (COCO, masks as run lengths), and label maps
in masks/, 0 where no object is and else 1 + the digit.

Digits: scikit-learn's `load_digits` (UCI, E. Alpaydin and C. Kaynak, CC BY 4.0), divided as by `tools.digits.train`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tools.digits.train import load_splits

SIDE = 48  # pixels
CLASSES = 10
SMALLEST, LARGEST, MOST = 14, 28, 3
CONTRAST, NOISE = 0.35, 0.04
SPLITS = ("train", "held", "test")

Split = Literal["train", "held", "test"]


@dataclass(frozen=True)
class Scene:
    """One picture and what it shows, K objects.

    Attributes:
        image: uint8[SIDE, SIDE, 3].
        digits: int64[K].
        masks: bool[K, SIDE, SIDE]; no pixel is in two.
        boxes: int64[K, 4], x0, y0, x1, y1 in pixels; x1 and y1 are the first outside.
    """

    image: NDArray[np.uint8]
    digits: NDArray[np.int64]
    masks: NDArray[np.bool_]
    boxes: NDArray[np.int64]

    @property
    def label_map(self) -> NDArray[np.uint8]:
        """uint8[SIDE, SIDE]: 0, or 1 + the digit."""
        found: NDArray[np.uint8] = (self.masks * (1 + self.digits[:, None, None])).sum(0).astype(np.uint8)
        return found


def scene(split: Split, number: int) -> Scene:
    """Scene `number` of a split."""
    rng = np.random.default_rng((SPLITS.index(split), number))
    glyphs, labels = _glyphs(split)
    coarse = Image.fromarray(((0.6 * rng.random(3) + 0.4 * rng.random((4, 4, 3))) * 255).astype(np.uint8))
    canvas = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) / 255
    digits, masks, boxes = [], [], []
    wanted = int(rng.integers(1, MOST + 1))
    while len(digits) < wanted:
        chosen = int(rng.integers(len(labels)))
        size = int(rng.integers(SMALLEST, LARGEST + 1))
        ink = np.asarray(Image.fromarray(glyphs[chosen]).resize((size, size), Image.Resampling.BILINEAR)) > 127
        x, y = (int(v) for v in rng.integers(0, SIDE - size + 1, 2))
        mask = np.zeros((SIDE, SIDE), bool)
        mask[y : y + size, x : x + size] = ink
        box = _extent(mask)
        if any(_overlap(box, other) for other in boxes):
            if rng.random() < 0.05:  # there may be no room left
                wanted = len(digits)
            continue
        canvas = np.where(mask[..., None], _colour(rng, canvas[mask].mean(0)), canvas)
        digits.append(int(labels[chosen]))
        masks.append(mask)
        boxes.append(box)
    canvas = canvas + rng.normal(0, NOISE, canvas.shape)
    pixels = np.rint(canvas.clip(0, 1) * 255).astype(np.uint8)
    return Scene(pixels, np.array(digits, np.int64), np.stack(masks), np.array(boxes, np.int64))


def write(folder: Path, split: Split, scenes: int) -> Path:
    """The first scenes of a split as files below FOLDER/SPLIT, made where they are not there; returns that folder."""
    out = folder / split
    done = out / "instances.json"
    if done.exists() and len(json.loads(done.read_text(encoding="utf-8"))["images"]) == scenes:
        return out
    (out / "masks").mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    for number in range(scenes):
        made, name = scene(split, number), f"{number:05}.png"
        Image.fromarray(made.image).save(out / name)
        Image.fromarray(made.label_map).save(out / "masks" / name)
        images.append({"id": number + 1, "file_name": name, "width": SIDE, "height": SIDE})
        for digit, mask, (x0, y0, x1, y1) in zip(made.digits, made.masks, made.boxes.tolist(), strict=True):
            objects.append(
                {
                    "id": len(objects) + 1,
                    "image_id": number + 1,
                    "category_id": int(digit) + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": {"size": [SIDE, SIDE], "counts": run_lengths(mask)},
                }
            )
    kinds = [{"id": digit + 1, "name": f"digit-{digit}"} for digit in range(CLASSES)]
    done.write_text(json.dumps({"images": images, "annotations": objects, "categories": kinds}), encoding="utf-8")
    return out


def run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """COCO's uncompressed form: lengths of runs down the columns, the first of pixels that are not the object's."""
    flat = mask.flatten(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=False))
    return [int(n) for n in np.diff(edges, prepend=0, append=flat.size)]


@cache
def _glyphs(split: Split) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """A split's digits, uint8[n, 8, 8] and int64[n]; a sixth of the training digits are held out."""
    train, test = load_splits()
    held = len(train.labels) // 6
    part = {"train": slice(held, None), "held": slice(held), "test": slice(None)}[split]
    of = test if split == "test" else train
    ink = (of.images[part, 0, ::4, ::4] * 0.5 + 0.5) * 255
    return np.rint(ink).astype(np.uint8), of.labels[part]


def _colour(rng: np.random.Generator, behind: NDArray[np.float64]) -> NDArray[np.float64]:
    """float64[3], far enough from the mean colour of what is covered."""
    while True:
        found: NDArray[np.float64] = rng.random(3)
        if np.abs(found - behind).mean() >= CONTRAST:
            return found


def _extent(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _overlap(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
