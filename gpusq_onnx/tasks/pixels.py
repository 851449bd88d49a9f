"""Planes of numbers over an image, brought to another size: bilinear, pixels as areas, edges kept. SciPy's."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def resized(planes: NDArray[Any], size: tuple[int, ...]) -> NDArray[Any]:
    """Planes [C, h, w] as [C, *size], float32; as they are where they have that size. No smoothing when shrinking."""
    if planes.shape[1:] == size:
        return planes
    from scipy.ndimage import zoom

    factors = (1, size[0] / planes.shape[1], size[1] / planes.shape[2])
    found: NDArray[Any] = zoom(planes.astype(np.float32), factors, order=1, mode="nearest", grid_mode=True)
    return found
