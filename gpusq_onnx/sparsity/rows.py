"""From an activation to the rows that a weight multiplies: X[rows, k] with k in the order of w[out, k].

A Linear's activation [..., k] only loses its leading axes. A Conv's becomes one row an output position, its k ordered
(kernel positions, then channels) as in w[out, k] (im2col).

Limits: Convs over two spatial axes, one group, explicit padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def linear_rows(x: NDArray[Any]) -> NDArray[Any]:
    """x[..., k] as [rows, k], without a copy."""
    return x.reshape(-1, x.shape[-1])


def conv_rows(
    x: NDArray[Any], kernel: Sequence[int], strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int]
) -> NDArray[Any]:
    """x[n, c, h, w] as [n * out_h * out_w, kernel_h * kernel_w * c].

    Args:
        pads: top, left, bottom, right, as in ONNX.
    """
    top, left, bottom, right = pads
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    reach = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=(2, 3))
    windows = windows[:, :, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]]
    return windows.transpose(0, 2, 3, 4, 5, 1).reshape(-1, kernel[0] * kernel[1] * x.shape[1])
