"""Pixels as files, and the way back from a model's input to pixels: for pictures in reports.

pixels = round(255 (tensor mean-and-std undone)), of images; stretched from least to largest, of other arrays
"""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gpusq_onnx.marks import JPEG_COMMENT

Pixels = NDArray[np.uint8]


def encoded(pixels: Pixels, kind: Literal["JPEG", "PNG"]) -> bytes:
    """uint8[H, W, 3] as a file's bytes."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, kind, **({"quality": 88, "comment": JPEG_COMMENT} if kind == "JPEG" else {}))
    return file.getvalue()


def enlarged(values: NDArray[Any], size: tuple[int, int], *, smooth: bool = True) -> NDArray[np.float32]:
    """float [h, w] as [H, W]; `smooth`: bicubic, and cut to 0..1, else the nearest."""
    image = Image.fromarray(values.astype(np.float32))
    found = np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST))
    return np.clip(found, 0.0, 1.0) if smooth else found


def at_least(pixels: Pixels, side: int) -> Pixels:
    """A picture whose shorter side is smaller, enlarged by a whole factor, pixels as squares."""
    factor = -(-side // min(pixels.shape[:2]))
    return np.repeat(np.repeat(pixels, factor, axis=0), factor, axis=1) if factor > 1 else pixels


def shown(row: NDArray[Any], preprocess: Mapping[str, Any] | None) -> Pixels:
    """What a model's input [C, H, W] or [H, W, C] shows, uint8[H, W, 3].

    Args:
        preprocess: what `Preprocess.describe` says; None: of arrays, which nobody describes.
    """
    first = preprocess["layout"] == "NCHW" if preprocess else row.shape[0] in (1, 3)
    x = (np.moveaxis(row, 0, -1) if first else row).astype(np.float64)[..., :3]
    if preprocess and preprocess["channels"] == "BGR":
        x = x[..., ::-1]
    if preprocess and preprocess["mean"] is not None:
        x = 255 * (x * np.array(preprocess["std"]) + np.array(preprocess["mean"]))
    elif row.dtype != np.uint8:
        low, high = float(x.min()), float(x.max())
        x = 255 * (x - low) / ((high - low) or 1.0)
    x = np.repeat(x, 3, axis=-1) if x.shape[-1] == 1 else x
    pixels: Pixels = np.rint(np.clip(x, 0, 255)).astype(np.uint8)
    return pixels
