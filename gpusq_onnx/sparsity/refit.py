"""The best values for the weights that a mask keeps: least squares on the layer's output, by conjugate gradients.

Minimises (w - w') H (w - w')^T over w' with the zeros of a given start, each output channel on its own, all at once:

    residual R = M * (H (W - W'))        M the mask; preconditioned by diag H

SparseGPT lets each pruned column be made up for only by the columns to its right; this also moves those on the left.
A dozen steps go most of the way; each is one GEMM of H with all channels.

Source: Meng et al., "ALPS" (NeurIPS 2024, arXiv 2406.07831), its post-processing on a fixed support.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.sums import column_dots

Float32 = NDArray[np.float32]


def refit(w: Float32, start: Float32, h: NDArray[np.floating[Any]], steps: int) -> Float32:
    """Improve `start` towards `w` where it is not zero.

    Args:
        w: [k, out], the dense weights, transposed.
        start: [k, out], pruned weights; zeros stay zeros.
        h: [k, k], positive definite; float32 is taken as it is.
        steps: of conjugate gradients; the error falls with each, k steps are exact but for rounding.

    Returns:
        float32 [k, out].
    """
    hessian = h.astype(np.float32, copy=False)
    scale = 1 / np.diag(hessian)[:, None]
    mask = start != 0
    refitted = start.copy()
    residual = (hessian @ (w - refitted)) * mask
    direction = scale * residual
    slope = _column_dot(residual, direction)
    for _ in range(steps):
        curved = (hessian @ direction) * mask
        length = _ratio(slope, _column_dot(direction, curved))
        refitted += length * direction
        residual -= length * curved
        ahead = scale * residual
        previous, slope = slope, _column_dot(residual, ahead)
        direction = ahead + _ratio(slope, previous) * direction
    return refitted


def _column_dot(a: Float32, b: Float32) -> Float32:
    return column_dots(a, b).astype(np.float32)


def _ratio(a: Float32, b: Float32) -> Float32:
    """a / b, 0 where a channel has arrived and b is 0."""
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)
