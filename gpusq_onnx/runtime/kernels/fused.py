"""Dense INT8 with everything after the product in the same Triton kernel: the best dense baseline that we can make.

    grid       one program a tile of BM x BN outputs; tiles of `group` row blocks run together, so that the weight's
               columns that they share stay in the L2 cache
    loop       INT8 tiles [BM, BK] and [BN, BK] -> INT32 accumulators
    epilogue   the steps of `arithmetic.Tail` in registers; INT8 or float out

`torch._int_mm` writes INT32 and another kernel reads it again: for fc1 of ViT-Base 8 of the 9 bytes moved for an
output. Here an output moves once. Rounding half to even is y + 1.5 2²³ - 1.5 2²³ on clamped values (|y| < 2²²);
division is the correctly rounded one.

Limits: K a multiple of 16. The loop bound is a compile-time constant, so every K compiles anew.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from gpusq_onnx.runtime.kernels.arithmetic import Activation, Tail

_ACTIVATIONS: dict[Activation, int] = {"": 0, "relu": 1, "gelu": 2, "gelu_tanh": 3}


@dataclass(frozen=True)
class Tile:
    """Block shape, row blocks that run together, warps and pipeline stages of one program."""

    rows: int
    columns: int
    depth: int
    group: int = 8
    warps: int = 8
    stages: int = 3


TILES = (
    Tile(128, 256, 128),
    Tile(128, 128, 128, stages=4),
    Tile(256, 128, 128),
    Tile(128, 128, 64, warps=4, stages=4),
    Tile(64, 128, 128, warps=4, stages=4),
    Tile(64, 64, 128, warps=4, stages=5),
    Tile(32, 64, 128, warps=4, stages=5),
)
"""What `choose` tries; the small ones are for a batch of one."""


class FusedLinear(nn.Module):
    """INT8 codes [M, K] to the tail's result [M, N].

    Args:
        codes: the weight's INT8 codes [N, K].
        tail: what follows the product.
        tile: see `TILES`.
    """

    codes: Tensor

    def __init__(self, codes: Tensor, tail: Tail, tile: Tile = TILES[1]) -> None:
        super().__init__()
        self.register_buffer("codes", codes.contiguous())
        self.tail, self.tile = tail, tile

    def forward(self, x: Tensor) -> Tensor:
        tail, tile = self.tail, self.tile
        dtype = tail.dtype if tail.out is None else torch.int8
        shape = [tile.rows, tile.columns, tile.depth, tile.group, tile.warps, tile.stages]
        code = _ACTIVATIONS[tail.activation]
        y: Tensor = fused_linear(x, self.codes, tail.alpha, tail.bias, tail.middle, tail.out, code, dtype, shape)
        return y


@torch.library.custom_op("gpusq::fused_linear", mutates_args=())
def fused_linear(
    x: Tensor,
    codes: Tensor,
    alpha: Tensor,
    bias: Tensor | None,
    middle: Tensor | None,
    out: Tensor | None,
    activation: int,
    dtype: torch.dtype,
    tile: list[int],
) -> Tensor:
    """The kernel as one opaque operator; see `FusedLinear`."""
    x = x.contiguous()
    (rows, k), n = x.shape, codes.shape[0]
    y = x.new_empty((rows, n), dtype=dtype)
    bm, bn, bk, group, warps, stages = tile
    _kernel[(triton.cdiv(rows, bm) * triton.cdiv(n, bn),)](
        x, codes, y, alpha,
        *(alpha if given is None else given for given in (bias, middle, out)),
        rows, n, k,
        has_bias=bias is not None, has_middle=middle is not None, has_out=out is not None, activation=activation,
        bm=bm, bn=bn, bk=bk, group=group, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return y


@fused_linear.register_fake
def _(
    x: Tensor,
    codes: Tensor,
    alpha: Tensor,
    bias: Tensor | None,
    middle: Tensor | None,
    out: Tensor | None,
    activation: int,
    dtype: torch.dtype,
    tile: list[int],
) -> Tensor:
    return x.new_empty((x.shape[0], codes.shape[0]), dtype=dtype)


@triton.jit
def rounded(y, scale):  # type: ignore[no-untyped-def]  # Triton compiles annotations, too
    """The codes of `y` at `scale`, still as float: for other kernels, too."""
    y = tl.div_rn(y, scale)
    y = tl.minimum(tl.maximum(y, -128.0), 127.0)
    return (y + 12582912.0) - 12582912.0


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]
    x_at, w_at, y_at, alpha_at, bias_at, middle_at, out_at,
    rows, n: tl.constexpr, k: tl.constexpr,
    has_bias: tl.constexpr, has_middle: tl.constexpr, has_out: tl.constexpr, activation: tl.constexpr,
    bm: tl.constexpr, bn: tl.constexpr, bk: tl.constexpr, group: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    across: tl.constexpr = (n + bn - 1) // bn
    down = tl.cdiv(rows, bm)
    first = program // (group * across) * group
    height = tl.minimum(down - first, group)
    inside = program % (group * across)
    row = (first + inside % height) * bm + tl.arange(0, bm)
    column = inside // height * bn + tl.arange(0, bn)
    deep = tl.arange(0, bk)
    x_tile = x_at + (row % rows).to(tl.int64)[:, None] * k + deep[None, :]
    w_tile = w_at + (column % n).to(tl.int64)[None, :] * k + deep[:, None]
    total = tl.zeros((bm, bn), dtype=tl.int32)
    for start in range(0, k, bk):
        if k % bk == 0:
            x = tl.load(x_tile)
            w = tl.load(w_tile)
        else:
            x = tl.load(x_tile, mask=deep[None, :] < k - start, other=0)
            w = tl.load(w_tile, mask=deep[:, None] < k - start, other=0)
        total = tl.dot(x, w, total, out_dtype=tl.int32)
        x_tile += bk
        w_tile += bk
    y = total.to(tl.float32) * tl.load(alpha_at + column, mask=column < n, other=0.0)[None, :]
    if has_bias:
        y += tl.load(bias_at + column, mask=column < n, other=0.0)[None, :]
    if has_middle:
        middle = tl.load(middle_at)
        y = rounded(y, middle) * middle
    if activation == 1:
        y = tl.maximum(y, 0.0)
    elif activation == 2:
        y = y * 0.5 * (1.0 + tl.math.erf(y * 0.7071067811865476))
    elif activation == 3:
        inner = 1.5957691216057308 * (y + 0.044715 * y * y * y)  # 2 sqrt(2/pi); tanh(u) = 2 sigmoid(2u) - 1
        y = y * tl.sigmoid(inner)
    if has_out:
        y = rounded(y, tl.load(out_at))
    place = y_at + row.to(tl.int64)[:, None] * n + column[None, :]
    tl.store(place, y.to(y_at.dtype.element_ty), mask=(row[:, None] < rows) & (column[None, :] < n))


def why_not(k: int) -> str | None:
    """Why this way cannot serve a weight [n, k]; None: it can."""
    return f"K = {k} is no multiple of 16" if k % 16 else None
