"""The sweep of optimal brain surgeon: settle the columns of w one by one, and let those to the right make up for it.

Minimises ||X t^T - X w^T||^2 over w, seen only through H = X^T X:

    H^-1 = U^T U, U upper triangular            (damped: H + damping * mean(diag H) * I, scaled)
    for each column i:  e = (w_i - settled(w_i)) / U_ii;  w_j -= e * U_ij for all j > i

What a column is settled to is the caller's: 0 or itself (`sparsegpt`), the nearest value of a grid (`quant.rounding`).

Source: Frantar and Alistarh, "SparseGPT", ICML 2023 (arXiv 2301.00774), algorithm 1; "GPTQ" (arXiv 2210.17323).
"""

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.sparsity.gram import TILE, Each, one_by_one, spans

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

Column = Callable[[int, Float32], Float32]
"""What column i of a group, values [out], becomes."""
Settle = Callable[[slice, Float32, Float32], Column]
"""Looks at a group before its first column is settled: its place, its columns[group, out] as updated so far, and the
pivots U_ii[group, 1]."""

_RAISED, _ATTEMPTS = 0.1, 8  # of the mean of the diagonal, fourfold each time
CHANNELS = 256  # output channels that are worked through together: their columns of a block fit a core's cache


def sweep(columns: Float32, upper: Float32, settle: Settle, group: int = 1, block: int = 128) -> None:
    """Settle all columns[k, out], in place.

    Args:
        columns: w transposed.
        upper: U[k, k], of `inverse_factor`.
        settle: says what becomes of the columns of a group.
        group: columns that are looked at together; divides k.
        block: columns between two updates of all that follows; a matter of speed, rounded down to whole groups.
    """
    block = max(1, block // group) * group
    for span in spans(len(columns), block):
        errors = _sweep_block(columns[span], upper[span, span], span.start, settle, group)
        columns[span.stop :] -= upper[span, span.stop :].T @ errors


def _sweep_block(columns: Float32, upper: Float32, first: int, settle: Settle, group: int) -> Float32:
    """Settle columns[k', out] of a block in place; return what each column left to the later blocks, e[k', out]."""
    errors = np.zeros_like(columns)
    pivots = np.diag(upper)[:, None]
    for part in spans(len(columns), group):
        becomes = settle(slice(first + part.start, first + part.stop), columns[part], pivots[part])
        for i in range(part.start, part.stop):
            settled = becomes(i - part.start, columns[i])
            errors[i] = (columns[i] - settled) / pivots[i]
            columns[i] = settled
            columns[i + 1 :] -= upper[i, i + 1 :, None] * errors[i]
    return errors


def damped(h: Float64, damping: float, least: float = 0.0) -> Float64:
    """`ridged`, times the power of 4 that makes the mean diagonal about 1; in place.

    What is settled and made up for is the same for any multiple of h, and to the bit for powers of 4, whose roots are
    exact. In float32 it is then right for inputs of any size: its eigenvalues lie between the damping and k.

    Raises:
        ValueError, numpy.linalg.LinAlgError: as `ridged`.
    """
    h = ridged(h, damping, least)
    size = math.frexp(float(np.mean(np.diag(h))))[1]
    return np.ldexp(h, -(size // 2 * 2), out=h)


def ridged(h: Float64, damping: float, least: float = 0.0) -> Float64:
    """h with the damping, in units of its mean diagonal, added to its diagonal, at least `least`; in place.

    Raises:
        ValueError: damping <= 0.
        numpy.linalg.LinAlgError: h holds infinities.
    """
    if not damping > 0:
        raise ValueError(f"damping must be > 0; found {damping}")
    if not np.isfinite(h).all():  # a factor of it may be NaN, and nobody says so
        raise np.linalg.LinAlgError("their squares hold infinities")
    ridge = max(damping * float(np.mean(np.diag(h))), least)
    h[np.diag_indices_from(h)] += ridge if ridge > 0 else 1.0  # no input but zeros: the identity
    return h


def inverse_factor(h: Float64, each: Each = one_by_one) -> Float64:
    """The upper triangular U with h^-1 = U^T U, without ever forming h^-1.

    With J the reversal, J h J = L L^T gives h = (J L J)(J L J)^T, and J L J is upper triangular: U is its inverse.
    Where rounding left h an eigenvalue below zero (inputs that hardly vary), its diagonal is raised, in place.
    """
    lower = _cholesky(h)[::-1, ::-1]
    return _inverse_upper(lower.astype(np.float64, copy=False), each)


def _cholesky(h: Float64) -> NDArray[np.floating[Any]]:
    """The lower L of J h J."""
    more = _RAISED * float(np.abs(np.diag(h)).mean())
    for _ in range(_ATTEMPTS):
        with suppress(np.linalg.LinAlgError):
            return np.linalg.cholesky(h[::-1, ::-1])
        h[np.diag_indices_from(h)] += more
        more *= 4
    return np.linalg.cholesky(h[::-1, ::-1])


def _inverse_upper(u: Float64, each: Each) -> Float64:
    """Inverse of an upper triangular matrix by halves: numpy has no triangular inverse, and a general one costs 6x."""
    n = len(u)
    if n <= 64:
        return np.triu(np.linalg.inv(u))
    half = n // 2
    inverse = np.zeros_like(u)
    inverse[:half, :half] = _inverse_upper(u[:half, :half], each)
    inverse[half:, half:] = _inverse_upper(u[half:, half:], each)
    corner = np.empty((half, n - half))

    def left(rows: slice) -> None:
        corner[rows] = -inverse[rows, rows.start : half] @ u[rows.start : half, half:]

    def right(columns: slice) -> None:
        inverse[:half, half:][:, columns] = corner[:, : columns.stop] @ inverse[half:, half:][: columns.stop, columns]

    each(left, spans(half, TILE))
    each(right, spans(n - half, TILE))
    return inverse
