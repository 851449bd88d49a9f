"""The Triton kernel of `attention`: one program takes some queries of one head, and all of its keys.

Keys are padded to a power of two and masked. Tensors come with their strides, so that no layout has to be copied.
Importing this needs Triton.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gpusq_onnx.runtime.kernels.fused import rounded

ROWS = 64  # queries of one program: the least that Hopper's warp-group instructions take


def launch(q: Tensor, k: Tensor, v: Tensor, scales: Tensor, out: Tensor | None, dtype: torch.dtype) -> Tensor:
    """See `attention.attention`; what it refuses is not checked again."""
    batch, heads, tokens, head = q.shape
    keys = k.shape[2]
    y = torch.empty(q.shape, dtype=dtype if out is None else torch.int8, device=q.device)
    width = max(16, triton.next_power_of_2(keys))
    _kernel[(triton.cdiv(tokens, ROWS), batch * heads)](
        q, k, v, y, scales, scales if out is None else out,
        heads, tokens, keys, *q.stride(), *k.stride(), *v.stride(), *y.stride(),
        has_out=out is not None, rows=ROWS, width=width, head=head, num_warps=4 if width <= 256 else 8, num_stages=1,
    )  # fmt: skip
    return y


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]
    q_at, k_at, v_at, y_at, scales_at, out_at, heads, tokens, keys,
    q_b, q_h, q_t, q_d, k_b, k_h, k_t, k_d, v_b, v_h, v_t, v_d, y_b, y_h, y_t, y_d,
    has_out: tl.constexpr, rows: tl.constexpr, width: tl.constexpr, head: tl.constexpr,
):  # fmt: skip
    image = (tl.program_id(1) // heads).to(tl.int64)
    place = (tl.program_id(1) % heads).to(tl.int64)
    m = tl.program_id(0) * rows + tl.arange(0, rows)
    n = tl.arange(0, width)
    d = tl.arange(0, head)
    q_block = q_at + image * q_b + place * q_h + m[:, None] * q_t + d[None, :] * q_d
    q = tl.load(q_block, mask=m[:, None] < tokens, other=0).to(tl.float16)
    k_block = k_at + image * k_b + place * k_h + n[None, :] * k_t + d[:, None] * k_d
    k = tl.load(k_block, mask=n[None, :] < keys, other=0).to(tl.float16)
    s_q, s_k = tl.load(scales_at), tl.load(scales_at + 1)
    s_p, s_v = tl.load(scales_at + 2), tl.load(scales_at + 3)
    scores = tl.dot(q, k) * (s_q * s_k)
    scores = tl.where(n[None, :] < keys, scores, float("-inf"))
    shares = tl.exp(scores - tl.max(scores, 1)[:, None])
    shares = tl.div_rn(shares, tl.sum(shares, 1)[:, None])
    codes = rounded(shares, s_p).to(tl.float16)
    v_block = v_at + image * v_b + place * v_h + n[:, None] * v_t + d[None, :] * v_d
    v = tl.load(v_block, mask=n[:, None] < keys, other=0).to(tl.float16)
    y = tl.dot(codes, v) * (s_p * s_v)
    if has_out:
        y = rounded(y, tl.load(out_at))
    y_block = y_at + image * y_b + place * y_h + m[:, None] * y_t + d[None, :] * y_d
    tl.store(y_block, y.to(y_at.dtype.element_ty), mask=m[:, None] < tokens)
