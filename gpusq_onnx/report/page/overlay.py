"""Maps, masks and boxes over an image, as pixels: heat in matplotlib's `turbo`, classes in its `tab20`.

heat    pixels (1 - a) + colour a, a = 0.15 + 0.5 map: where the map is zero, the image shows through
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.data.encode import Pixels

_LEAST, _MORE = 0.15, 0.5
_MASK = 0.55
_LINE = (255, 255, 255)
_OBJECT = (255, 127, 14)


def heat(pixels: Pixels, values: NDArray[np.float32]) -> Pixels:
    """A map [H, W], 0 to 1, over an image of its size."""
    from matplotlib import colormaps

    colour = 255 * colormaps["turbo"](values)[..., :3]
    return _blend(pixels, colour, (_LEAST + _MORE * values)[..., None])


def classes(pixels: Pixels, mask: NDArray[np.int64]) -> Pixels:
    """The class of each pixel [H, W] over an image of its size; classes 20 apart share a colour."""
    from matplotlib import colormaps

    colour = 255 * np.array(colormaps["tab20"].colors)[mask % 20]  # type: ignore[attr-defined]
    return _blend(pixels, colour, np.full((*mask.shape, 1), _MASK))


def outlined(pixels: Pixels, outline: NDArray[np.bool_]) -> Pixels:
    """An object [H, W] over an image of its size, in one colour."""
    colour = np.broadcast_to(np.array(_OBJECT, np.float64), pixels.shape)
    return _blend(pixels, colour, _MASK * outline[..., None])


def boxed(pixels: Pixels, box: tuple[float, ...]) -> Pixels:
    """A box's edge, white between black lines; x0, y0, x1, y1 as shares of the image."""
    height, width = pixels.shape[:2]
    found = pixels.copy()
    limits = np.array([width, height, width, height])
    x0, y0, x1, y1 = np.clip(np.rint(np.array(box) * limits), 0, limits - 1).astype(int)
    for inset, colour in ((0, (0, 0, 0)), (1, _LINE), (2, _LINE), (3, (0, 0, 0))):
        top, bottom, left, right = y0 + inset, y1 - inset, x0 + inset, x1 - inset
        if top < bottom and left < right:
            found[[top, bottom], left : right + 1] = colour
            found[top : bottom + 1, [left, right]] = colour
    return found


def _blend(pixels: Pixels, colour: NDArray[np.float64], share: NDArray[np.floating]) -> Pixels:
    mixed: Pixels = np.rint(pixels * (1 - share) + colour * share).astype(np.uint8)
    return mixed
