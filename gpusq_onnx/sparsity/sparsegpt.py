"""SparseGPT: prune column by column, and let the columns to the right make up for each loss.

Minimises ||X w^T - X w'^T||^2 over w' of the pattern, X[rows, k] the layer's inputs, seen only through H = X^T X:

    H^-1 = U^T U, U upper triangular            (damped: H + damping * mean(diag H) * I)
    for each group along k:  keep the elements of largest |w_i| / U_ii, with w as updated so far
    for each pruned column i: e = w_i / U_ii;  w_j -= e * U_ij for all j >= i

Source: Frantar and Alistarh, "SparseGPT", ICML 2023 (arXiv 2301.00774), algorithm 1 with the group choice of its N:M
variant. Limits: memory of a few k x k float32/float64 matrices; time ~ k^3 + out * k^2.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.sparsity.patterns import Pattern

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


class Gram:
    """Streaming sum of X^T X and of X over the rows of X[rows, k], in O(k^2) memory.

    Attributes:
        k: number of input features.
        rows: rows seen.
        matrix: float32 [k, k], the sum of X^T X.
    """

    def __init__(self, k: int) -> None:
        self.k = k
        self.rows = 0
        self.matrix: Float32 = np.zeros((k, k), np.float32)
        self._sum: Float64 = np.zeros(k)

    def add(self, x: NDArray[Any]) -> None:
        """Add the rows of x[..., k], any float dtype.

        Raises:
            ValueError: the last dimension is not k, NaN or infinity.
        """
        flat = _rows(x, self.k)
        self.matrix += flat.T @ flat
        self._sum += flat.sum(axis=0, dtype=np.float64)
        self.rows += len(flat)

    @property
    def mean(self) -> Float32:
        """Mean input, float32 [k]; zeros when nothing was added."""
        return (self._sum / max(1, self.rows)).astype(np.float32)


def prune(w: NDArray[Any], gram: Gram, pattern: Pattern, *, damping: float = 0.01, block: int = 128) -> NDArray[Any]:
    """A copy of w[out, k] that obeys the pattern, the kept elements updated to make up for the pruned ones.

    Args:
        w: [out, k], any float dtype and memory order; both are kept.
        gram: of the layer's inputs. Inputs that were always zero have only the damping to speak for them: their
            weights go first, and by magnitude.
        damping: > 0, in units of the mean of the Gram's diagonal.
        block: columns between two updates of all that follows; a matter of speed, rounded down to whole groups.

    Raises:
        ValueError: shapes that do not fit, NaN or infinity in w, damping <= 0.
    """
    out, k = w.shape
    if k != gram.k:
        raise ValueError(f"w[out, k] of shape {w.shape} does not fit a Gram matrix of k = {gram.k}")
    group = pattern.group
    block = max(1, block // group) * group
    upper = _inverse_factor(_damped(gram.matrix, damping)).astype(np.float32)
    pivots = np.diag(upper)
    columns = np.array(w.T, np.float32, order="C")  # [k, out]: a column of w is contiguous
    if not np.isfinite(columns).all():
        raise ValueError(f"weights must be finite; found NaN or infinity in shape {w.shape}")
    for start in range(0, k, block):
        stop = min(start + block, k)
        errors = np.zeros((stop - start, out), np.float32)
        for first in range(start, stop, group):
            span = slice(first, first + group)
            keep = pattern.mask((np.abs(columns[span]) / pivots[span, None]).T).T
            for i in range(first, min(first + group, stop)):
                error = np.where(keep[i - first], np.float32(0), columns[i] / pivots[i])
                columns[i + 1 : stop] -= upper[i, i + 1 : stop, None] * error
                errors[i - start] = error
            columns[span][~keep] = 0
        columns[stop:] -= upper[start:stop, stop:].T @ errors
    pruned = np.empty_like(w)
    pruned[...] = columns.T
    return pruned


def retarget(w: NDArray[Any], gram_ss: Gram, gram_sd: NDArray[Any], *, damping: float = 0.01) -> Float32:
    """Weights that give, on the pruned prefix's inputs X_s, what w gave on the dense model's X_d.

    Minimises ||X_d w^T - X_s w*^T||^2 + lambda ||w* - w||^2, lambda = damping * mean(diag X_s^T X_s).

    Args:
        w: [out, k].
        gram_ss: Gram of X_s.
        gram_sd: X_s^T X_d summed over the same rows, [k, k].
        damping: > 0.

    Returns:
        float32 [out, k].
    """
    ridge = _ridge(gram_ss.matrix, damping)
    right = gram_sd.astype(np.float64) + ridge * np.eye(gram_ss.k)
    solved = np.linalg.solve(_damped(gram_ss.matrix, damping), right @ w.T.astype(np.float64))
    return np.ascontiguousarray(solved.T, np.float32)


def bias_correction(w: NDArray[Any], pruned: NDArray[Any], x_mean: NDArray[Any]) -> Float32:
    """What to add to the bias so that the mean output is unchanged: (w - pruned) @ x_mean, float32 [out]."""
    return ((w.astype(np.float64) - pruned.astype(np.float64)) @ x_mean.astype(np.float64)).astype(np.float32)


def _rows(x: NDArray[Any], k: int) -> Float32:
    if x.ndim == 0 or x.shape[-1] != k:
        raise ValueError(f"inputs must be x[..., {k}]; found shape {x.shape}")
    flat = np.ascontiguousarray(x.reshape(-1, k), np.float32)
    if not np.isfinite(flat).all():
        raise ValueError(f"inputs must be finite; found NaN or infinity in shape {x.shape}")
    return flat


def _ridge(matrix: NDArray[Any], damping: float) -> float:
    if not damping > 0:
        raise ValueError(f"damping must be > 0; found {damping}")
    return float(damping * np.mean(np.diag(matrix), dtype=np.float64)) or 1.0  # no inputs at all: plain magnitude


def _damped(matrix: NDArray[Any], damping: float) -> Float64:
    damped = matrix.astype(np.float64)
    damped[np.diag_indices_from(damped)] += _ridge(matrix, damping)
    return damped


def _inverse_factor(h: Float64) -> Float64:
    """The upper triangular U with h^-1 = U^T U, without ever forming h^-1.

    With J the reversal, J h J = L L^T gives h = (J L J)(J L J)^T, and J L J is upper triangular: U is its inverse.
    """
    lower = np.linalg.cholesky(h[::-1, ::-1])
    return _inverse_upper(lower[::-1, ::-1])


def _inverse_upper(u: Float64) -> Float64:
    """Inverse of an upper triangular matrix by halves: numpy has no triangular inverse, and a general one costs 6x."""
    n = len(u)
    if n <= 64:
        return np.triu(np.linalg.inv(u))
    half = n // 2
    inverse = np.zeros_like(u)
    inverse[:half, :half] = _inverse_upper(u[:half, :half])
    inverse[half:, half:] = _inverse_upper(u[half:, half:])
    inverse[:half, half:] = -inverse[:half, :half] @ u[:half, half:] @ inverse[half:, half:]
    return inverse
