"""Folders of noise images, for passes that learn or calibrate."""

from pathlib import Path

import numpy as np
from PIL import Image


def noise_images(folder: Path, side: int, count: int = 8) -> Path:
    """Write `count` seeded images of side x side pixels."""
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 256, (side, side, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder
