"""The plain functions of a converted graph that torch itself has no single name for.

Each takes tensors and plain numbers and is what one ONNX operator does to data; they are leaves of the fx graph and
work on meta tensors, under vmap, autocast and torch.compile.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """ONNX Cast: `x` in another type."""
    return x.to(dtype)


def shape_of(x: Tensor, start: int, stop: int) -> Tensor:
    """ONNX Shape: the sizes of the axes start..stop, int64."""
    return torch.tensor(tuple(x.shape)[start:stop], dtype=torch.int64)


def size_of(x: Tensor) -> Tensor:
    """ONNX Size: the number of elements, int64."""
    return torch.tensor(x.numel(), dtype=torch.int64)


def take(x: Tensor, axis: int, indices: Tensor) -> Tensor:
    """ONNX Gather: rows of `x` along `axis`; indices of any shape, counted from the end where negative."""
    flat = indices.reshape(-1).long()
    flat = torch.where(flat < 0, flat + x.shape[axis], flat)
    rows = torch.index_select(x, axis, flat)
    return rows.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def take_points(x: Tensor, indices: Tensor, batch_dims: int) -> Tensor:
    """ONNX GatherND: x[b..., i0, i1, ...] for the index tuples along the last axis of `indices`."""
    if batch_dims == 0:
        return x[tuple(indices.unbind(-1))]
    leading = x.shape[:batch_dims]
    grids = [
        torch.arange(n, device=x.device).reshape([-1 if a == i else 1 for a in range(indices.ndim - 1)])
        for i, n in enumerate(leading)
    ]
    return x[(*grids, *indices.unbind(-1))]


def put_points(x: Tensor, indices: Tensor, updates: Tensor, accumulate: bool) -> Tensor:
    """ONNX ScatterND: a copy of `x` with `updates` at (or added to) the index tuples of `indices`."""
    x, updates = _alike(x, updates)
    return torch.index_put(x, tuple(indices.unbind(-1)), updates, accumulate)


def spread(x: Tensor, axis: int, index: Tensor, updates: Tensor, reduction: str) -> Tensor:
    """ONNX ScatterElements: a copy of `x` with updates[...] at index[...] along `axis`."""
    index = torch.where(index < 0, index + x.shape[axis], index)
    x, updates = _alike(x, updates)
    if reduction == "none":
        return torch.scatter(x, axis, index, updates)
    names = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
    return torch.scatter_reduce(x, axis, index, updates, names[reduction])


def _alike(x: Tensor, updates: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the wider type: under autocast one may come from a product and the other not."""
    kind = torch.promote_types(x.dtype, updates.dtype)
    return x.to(kind), updates.to(kind)


def take_elements(x: Tensor, axis: int, index: Tensor) -> Tensor:
    """ONNX GatherElements."""
    return torch.gather(x, axis, torch.where(index < 0, index + x.shape[axis], index))


def running_sum(x: Tensor, axis: int, exclusive: bool, reverse: bool) -> Tensor:
    """ONNX CumSum along `axis`; exclusive leaves each element itself out."""
    x = x.flip(axis) if reverse else x
    total = torch.cumsum(x, axis, dtype=x.dtype)
    total = total - x if exclusive else total
    return total.flip(axis) if reverse else total


def count_up(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """ONNX Range."""
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def places_of_nonzero(x: Tensor) -> Tensor:
    """ONNX NonZero: int64 [rank, count]."""
    return torch.nonzero(x).t().contiguous()


def product_along(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    """ONNX ReduceProd."""
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, axis, keepdim=keepdim)
    return x


def modulo(a: Tensor, b: Tensor | float, fmod: bool) -> Tensor:
    """ONNX Mod: the divisor's sign, or with `fmod` the dividend's."""
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


def divide(a: Tensor | float, b: Tensor | float) -> Tensor:
    """ONNX Div of integers: towards zero."""
    return torch.div(a, b, rounding_mode="trunc")


def one_hot(indices: Tensor, depth: int, off: float, on: float, axis: int, dtype: torch.dtype) -> Tensor:
    """ONNX OneHot."""
    indices = torch.where(indices < 0, indices + depth, indices)
    hot = (indices.unsqueeze(-1) == torch.arange(depth, device=indices.device)).movedim(-1, axis)
    return torch.where(hot, on, off).to(dtype)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    """ONNX Attention on [B, heads, tokens, width]; fewer key heads than query heads are shared by groups of them.

    On a CPU, bfloat16 and float16 become float32 for it, and autocast is off: in bfloat16, torch's kernel needs up to
    twice the time for forward and backward (torch 2.13; `python -m tools.bench attending`).
    """
    if q.device.type != "cpu":
        return _attention(q, k, v, mask, causal, scale)
    wide = None if mask is None else _widened(mask)
    with torch.autocast("cpu", enabled=False):
        return _attention(_widened(q), _widened(k), _widened(v), wide, causal, scale).to(v.dtype)


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    grouped = q.shape[1] != k.shape[1]
    return functional.scaled_dot_product_attention(q, k, v, mask, 0.0, causal, scale=scale, enable_gqa=grouped)


def _widened(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, tokens, heads * width] as [B, heads, tokens, width]."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[B, heads, tokens, width] as [B, tokens, heads * width]."""
    return x.transpose(1, 2).flatten(2)


def depth_to_space(x: Tensor, block: int, column_first: bool) -> Tensor:
    """ONNX DepthToSpace: [B, C * block², H, W] to [B, C, H * block, W * block]."""
    b, c, h, w = x.shape
    if column_first:
        return functional.pixel_shuffle(x, block)
    split = x.reshape(b, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return split.reshape(b, c // block**2, h * block, w * block)


def space_to_depth(x: Tensor, block: int) -> Tensor:
    """ONNX SpaceToDepth: [B, C, H, W] to [B, C * block², H / block, W / block]."""
    b, c, h, w = x.shape
    split = x.reshape(b, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return split.reshape(b, c * block**2, h // block, w // block)


def logsumexp_of(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    """ONNX ReduceLogSumExp."""
    return torch.logsumexp(x, tuple(axes), keepdim)


def norm_l2(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    """ONNX ReduceL2."""
    norm: Tensor = torch.linalg.vector_norm(x, 2, tuple(axes), keepdim)
    return norm


def norm_l1(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    """ONNX ReduceL1."""
    return x.abs().sum(tuple(axes), keepdim)


def squares(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    """ONNX ReduceSumSquare."""
    return x.square().sum(tuple(axes), keepdim)
