"""FP8 (E4M3) beside INT8: `torch._scaled_mm` with one scale a row of either side. A baseline in speed, not in numbers.

    x_8 = fp8(x / s_x)         s_x    = 127 s / 448, the range of the INT8 quantiser with scale s
    w_8[n] = fp8(w[n] / s_w[n])   s_w[n] = max |w[n]| / 448
    y   = s_x s_w[n] sum_k x_8 w_8 + bias

Limits: compute capability 8.9 or more; K and N multiples of 16; BF16 out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gpusq_onnx.runtime.kernels.arithmetic import Tail, padded_rows

FP8 = torch.float8_e4m3fn
LARGEST = 448.0
STEP = 16


def to_float8(x: Tensor, scale: Tensor) -> Tensor:
    """E4M3 values of `x` (any shape, float) in units of `scale`, saturated."""
    return torch.clamp(x.float() / scale, -LARGEST, LARGEST).to(FP8)


def float8_scale(scale: Tensor) -> Tensor:
    """The FP8 scale of a tensor that INT8 covers with `scale`."""
    return scale * (127.0 / LARGEST)


class Float8Linear(nn.Module):
    """E4M3 values [M, K] to a BF16 result [M, N], what follows it included.

    Args:
        weight: float [N, K].
        scale: the input's FP8 scale, one element.
        tail: bias, activation and quantiser after the product; its `alpha` and `middle` are INT8's and unused.
    """

    codes: Tensor
    row_scale: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, scale: Tensor, tail: Tail) -> None:
        super().__init__()
        row_scale = weight.float().abs().amax(1).clamp_min(1e-12) / LARGEST
        self.register_buffer("codes", to_float8(weight, row_scale[:, None]).contiguous())
        self.register_buffer("row_scale", row_scale[None, :].contiguous())
        self.register_buffer("scale", scale.float().reshape(1, 1))
        self.tail = tail

    def forward(self, x: Tensor) -> Tensor:
        rows = x.shape[0]
        x = padded_rows(x, STEP)
        scales = self.scale.expand(x.shape[0], 1).contiguous()
        y = torch._scaled_mm(x, self.codes.t(), scales, self.row_scale, out_dtype=torch.bfloat16, use_fast_accum=True)
        y = y[:rows].float()
        return self.tail.finish(y if self.tail.bias is None else y + self.tail.bias)


def why_not(n: int, k: int, device: torch.device) -> str | None:
    """Why this way cannot serve a weight [n, k] on `device`; None: it can."""
    if not hasattr(torch, "_scaled_mm"):
        return f"torch {torch.__version__} has no _scaled_mm"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        return "FP8 wants compute capability 8.9 or more"
    if n % STEP or k % STEP:
        return f"_scaled_mm wants multiples of {STEP}, the weight is [{n}, {k}]"
    return None
