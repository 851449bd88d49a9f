"""Attention between quantisers in one Triton kernel: INT8 codes of q, k and v in, float or INT8 codes out.

    s[m, n]  =  s_q s_k sum_d q[m, d] k[n, d]
    p_q      =  quantise(softmax_n(s), s_p)
    y[m, d]  =  s_p s_v sum_n p_q[m, n] v[n, d],   or its codes at s_o

The Q/DQ graph rounds the finished probabilities, so a running softmax will not do: one program holds whole rows of
scores (at most 512 keys, which is also where `qdq-int8` stops quantising attention), and they never leave the chip.
Codes are multiplied in FP16 and summed in FP32, exactly: products are at most 128² and sums 512 · 128² < 2²⁴.

Limits: one head size of 16 to 128, a power of two; no mask. On a CPU, and where Triton is missing, `attention` computes
the same with torch.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

from gpusq_onnx.runtime.kernels.arithmetic import quantise

MOST_KEYS = 512


def why_not(keys: int, head: int) -> str | None:
    """Why the kernel cannot serve this many keys of this head size; None: it can."""
    if keys > MOST_KEYS:
        return f"{keys} keys: whole rows of scores do not fit beyond {MOST_KEYS}"
    if head not in (16, 32, 64, 128):
        return f"a head size of {head} is no power of two from 16 to 128"
    return None


def attention(q: Tensor, k: Tensor, v: Tensor, scales: Tensor, out: Tensor | None, dtype: torch.dtype) -> Tensor:
    """INT8 codes q, k, v [B, H, T, d] to [B, H, T, d] in `dtype`, or to INT8 codes at the scale `out`.

    Args:
        scales: float32 [4]: s_q, s_k, s_p, s_v.
    """
    if q.is_cuda and find_spec("triton") is not None and why_not(k.shape[2], q.shape[3]) is None:
        made: Tensor = fused_attention(q, k, v, scales, out, dtype)
        return made
    return reference(q, k, v, scales, out, dtype)


def reference(q: Tensor, k: Tensor, v: Tensor, scales: Tensor, out: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The formulas above; sums in FP32, where they are exact."""
    scores = (q.float() @ k.float().transpose(2, 3)) * (scales[0] * scales[1])
    codes = quantise(torch.softmax(scores, 3), scales[2])
    y = (codes.float() @ v.float()) * (scales[2] * scales[3])
    return y.to(dtype) if out is None else quantise(y, out)


@torch.library.custom_op("gpusq::fused_attention", mutates_args=())
def fused_attention(q: Tensor, k: Tensor, v: Tensor, scales: Tensor, out: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The kernel as one opaque operator; see `attention`."""
    from gpusq_onnx.runtime.kernels.attention_kernel import launch

    return launch(q, k, v, scales, out, dtype)


@fused_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, scales: Tensor, out: Tensor | None, dtype: torch.dtype) -> Tensor:
    return q.new_empty(q.shape, dtype=dtype if out is None else torch.int8)
