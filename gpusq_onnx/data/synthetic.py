"""Seeded synthetic images, for calibration when there is no data.

Sum of octaves of random noise: octave k is a grid of 2^k x 2^k random values enlarged to the image, at amplitude 2^-k.
That gives the 1/f amplitude spectrum of natural images (Field 1987, doi:10.1364/JOSAA.4.002379); most of it is shared
by the colour channels, as in photographs, and brightness and contrast differ from image to image. Then the images go
through the same preprocessing as real ones.

All arithmetic is on integers and the randomness is SHAKE-256 of (seed, image): the same bytes on every machine.
Limits: no objects and no edges, so what deep layers respond to is missing: use real images where there are any.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.preprocess import for_input
from gpusq_onnx.data.source import Batch, Box, ImageInputs, Source

DEFAULT_SAMPLES = 64


class SyntheticImages(Source):
    """`options.samples` images (64 by default). Raises as `preprocess.for_input` does."""

    kind = "synthetic"
    croppable = True

    def __init__(self, options: DataOptions, inputs: ImageInputs) -> None:
        self._inputs = inputs
        self._preprocess = for_input(options, inputs.image)
        self.static_batch = inputs.image.static_batch
        self._count = options.samples or DEFAULT_SAMPLES
        self._seed = options.seed

    def __len__(self) -> int:
        return self._count

    @property
    def notes(self) -> list[str]:
        return ["no data was given: synthetic images are used instead, which say little about real ones"]

    def batches(self, batch: int) -> Iterator[Batch]:
        size = self.static_batch or batch
        for start in range(0, len(self), size):
            yield self.read(range(start, min(start + size, len(self)))).filled(self.static_batch)

    def read(self, indices: Sequence[int], boxes: Sequence[Box] | None = None) -> Batch:
        rows = np.empty((len(indices), *self._preprocess.shape), dtype=self._preprocess.spec.dtype)
        for slot, index in enumerate(indices):
            pixels = noise_image(self._seed, index, self._preprocess.height, self._preprocess.width)
            self._preprocess.write(Image.fromarray(pixels), rows[slot], boxes[slot] if boxes is not None else None)
        sizes = [(self._preprocess.width, self._preprocess.height)] * len(indices)
        return Batch(self._inputs.feed(rows, sizes), None, len(indices), np.array(indices, dtype=np.int64))

    def digest(self) -> str:
        """Of what determines the images: making them all to hash them would cost as much as using them."""
        recipe = f"noise-1/{self._seed}/{self._count}/{self._preprocess.height}x{self._preprocess.width}"
        return hashlib.sha256(recipe.encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "preprocess": self._preprocess.describe()}


def noise_image(seed: int, index: int, height: int, width: int) -> NDArray[np.uint8]:
    """uint8[height, width, 3]: image `index` of the series that `seed` names."""
    octaves = range(1, max(2, max(height, width).bit_length()))
    grids = [1 << octave for octave in octaves]
    # Luminance and three colour planes, each with every octave; two bytes more for brightness and contrast.
    random = hashlib.shake_256(f"gpusq-onnx/{seed}/{index}".encode()).digest(2 + 4 * sum(side * side for side in grids))
    brightness, contrast = 80 + random[0] * 3 // 8, 96 + random[1] * 5 // 8
    cursor = 2
    planes = []
    for _ in range(4):
        plane = np.zeros((height, width), dtype=np.int64)
        for side, weight in zip(grids, reversed(grids), strict=True):
            cells = np.frombuffer(random, np.uint8, side * side, cursor).reshape(side, side)
            cursor += side * side
            enlarged = Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)
            plane += (np.asarray(enlarged).astype(np.int64) - 128) * weight
        planes.append(plane * 3 // (2 * grids[-1]))
    colour = np.stack([planes[0] * 3 + plane for plane in planes[1:]], axis=-1) // 3
    pixels: NDArray[np.uint8] = np.clip(brightness + colour * contrast // 256, 0, 255).astype(np.uint8)
    return pixels
