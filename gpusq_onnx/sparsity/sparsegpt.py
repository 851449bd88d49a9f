"""SparseGPT: prune column by column, and let the columns to the right make up for each loss.

Minimises ||X w^T - X w'^T||^2 over w' of the pattern, X[rows, k] the layer's inputs, seen only through H = X^T X:

    for each group along k:  keep the elements of largest |w_i| / U_ii, with w as updated so far
    settle each pruned column at 0, each kept one as it is      (`sweep`, which defines U)

Two additions of ours, with what they gave on a real ViT-Tiny at 2:4, 128 calibration images, 650 validation images:
centred   where the layer has a bias that `bias_correction` then sets, the mean of X costs nothing, and H is taken over
          X less its mean: 37.4 to 38.6 % top-1
refit     the kept elements are solved for together once the mask is final (`refit`): 38.6 to 47.4 %

Source: Frantar and Alistarh, "SparseGPT", ICML 2023 (arXiv 2301.00774), algorithm 1 with the group choice of its N:M
variant. Limits: five k x k float64 matrices of memory; time ~ k^3 + out * k^2.

Output channels know nothing of each other: they are worked through in fixed groups, whose results are the same whoever
computes them.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.sparsity.gram import Each, Gram, one_by_one, spans
from gpusq_onnx.sparsity.patterns import Pattern
from gpusq_onnx.sparsity.refit import refit
from gpusq_onnx.sparsity.sweep import CHANNELS, Column, damped, inverse_factor, sweep

__all__ = ["Gram", "bias_correction", "prune"]

Float32 = NDArray[np.float32]


def prune(
    w: NDArray[Any],
    gram: Gram,
    pattern: Pattern,
    *,
    damping: float = 0.01,
    block: int = 128,
    centred: bool = False,
    refit_steps: int = 10,
    order: NDArray[np.intp] | None = None,
    each: Each = one_by_one,
) -> NDArray[Any]:
    """A copy of w[out, k] that obeys the pattern, the kept elements updated to make up for the pruned ones.

    Args:
        w: [out, k], any float dtype and memory order; both are kept.
        gram: of the layer's inputs. Inputs that were always zero have only the damping to speak for them: their
            weights go first, and by magnitude. A Gram that saw nothing leaves magnitude pruning.
        damping: > 0, in units of the mean of the diagonal of H; raised where rounding would decide (`Gram.rounding`).
        block: columns between two updates of all that follows; a matter of speed, rounded down to whole groups.
        centred: the layer's bias will absorb the change of the mean output (`bias_correction`).
        refit_steps: of `refit` once the mask is final; 0 for the paper's own weights.
        order: of the reduction axis, [k]: the pattern's groups are order[0:group] and so on, and columns make up for
            those before them in it; None: as it lies.
        each: how the groups of output channels are worked through.

    Raises:
        ValueError: shapes that do not fit, NaN or infinity in w, damping <= 0.
    """
    if w.ndim != 2 or w.shape[1] != gram.k or gram.k % pattern.group:
        raise ValueError(
            f"{pattern.name} needs w[out, k] with k % {pattern.group} == 0 and inputs of the same k; "
            f"found w of shape {w.shape}, inputs of k = {gram.k}"
        )
    if not np.isfinite(w.astype(np.float32, copy=False)).all():
        raise ValueError(f"weights must be finite; found NaN or infinity in shape {w.shape}")
    h = gram.sums(centred=centred)
    h = damped(h if order is None else h[np.ix_(order, order)], damping, gram.rounding if centred else 0.0)
    upper = inverse_factor(h, each).astype(np.float32)
    hessian = h.astype(np.float32)
    del h
    pruned = np.empty_like(w)
    there, back = (slice(None),) * 2 if order is None else (order, np.argsort(order))

    def settle(_: slice, columns: Float32, pivots: Float32) -> Column:
        keep = pattern.mask((np.abs(columns) / pivots).T).T
        return lambda i, column: np.where(keep[i], column, np.float32(0))

    def prune_channels(channels: slice) -> None:
        dense = np.array(w[channels].T[there], np.float32, order="C")  # [k, out]: each column of w is contiguous
        columns = dense.copy()
        sweep(columns, upper, settle, pattern.group, block)
        pruned[channels] = refit(dense, columns, hessian, refit_steps)[back].T

    each(prune_channels, spans(len(w), CHANNELS))
    return pruned


def bias_correction(w: NDArray[Any], pruned: NDArray[Any], x_mean: NDArray[Any]) -> Float32:
    """What to add to the bias so that the mean output stays: (w - pruned) @ x_mean, float32 [out].

    Args:
        w, pruned: [out, k], the weights before and after.
        x_mean: [k], the mean input.
    """
    return ((w.astype(np.float64) - pruned.astype(np.float64)) @ x_mean.astype(np.float64)).astype(np.float32)
