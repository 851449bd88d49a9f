"""Sums that are reported or decided on, in float64: what a kernel rounds in float32 must not choose a clip or a mask.

Of wide operands, up to `BLOCK` products are added in their own type (at least float32) and these sums in float64: the
precision of float64 to a few parts in 1e8, at the speed of float32 and without a float64 copy of a weight. Where that
overflows (values above 1e19), float64 throughout.

Limits: the last bits still depend on the CPU's vector width; none of them depends on the number of threads.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 64
_PIECE = 1 << 17  # elements that are turned into float64 at a time

Float64 = NDArray[np.float64]


def row_dots(a: NDArray[Any], b: NDArray[Any]) -> Float64:
    """sum_k a[o, k] b[o, k], float64 [o]; any float types and memory orders."""
    total = np.zeros(a.shape[0])
    whole = a.shape[1] - a.shape[1] % BLOCK if _by_rows(a) and _by_rows(b) else 0
    if whole:
        parts = (x[:, :whole].reshape(len(x), -1, BLOCK) for x in (a, b))
        total += _products("obk,obk->ob", *parts).sum(axis=1, dtype=np.float64)
    for start in range(whole, a.shape[1], BLOCK):
        part = slice(start, start + BLOCK)
        total += _products("ok,ok->o", a[:, part], b[:, part])
    return total


def column_dots(a: NDArray[Any], b: NDArray[Any]) -> Float64:
    """sum_o a[o, k] b[o, k], float64 [k]; any float types and memory orders."""
    total = np.zeros(a.shape[1])
    for start in range(0, a.shape[0], BLOCK):
        part = slice(start, start + BLOCK)
        total += _products("ok,ok->k", a[part], b[part])
    return total


def matvec(w: NDArray[Any], v: NDArray[Any]) -> Float64:
    """w[out, k] v[k], float64 [out]; a few rows of w are float64 at a time."""
    result, vector = np.empty(w.shape[0]), v.astype(np.float64)
    rows = max(1, _PIECE // max(1, w.shape[1]))
    for start in range(0, w.shape[0], rows):
        np.matmul(w[start : start + rows].astype(np.float64), vector, out=result[start : start + rows])
    return result


def squared_sum(x: NDArray[Any]) -> float:
    """The sum of all squares, in any order of memory."""
    flat = x.ravel(order="K")
    parts = (flat[start : start + _PIECE].astype(np.float64) for start in range(0, flat.size, _PIECE))
    return float(sum(np.vdot(part, part) for part in parts))


def widened(x: NDArray[Any]) -> NDArray[Any]:
    """`x` as float32, or float64 where float32 does not hold its values: float16 and bfloat16 arithmetic is slow in
    numpy, and |int8| overflows. No copy when there is nothing to do."""
    return x.astype(np.promote_types(x.dtype, np.float32), copy=False)


def _by_rows(x: NDArray[Any]) -> bool:
    return x.strides[1] == x.itemsize and x.dtype.itemsize >= 4  # others become wider block by block


def _products(sums: str, a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    found: NDArray[Any] = np.einsum(sums, widened(a), widened(b))
    return found if np.isfinite(found).all() else np.einsum(sums, a.astype(np.float64), b.astype(np.float64))
