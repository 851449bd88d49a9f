"""Dense INT8: `torch._int_mm` (cuBLASLt on a GPU), the tail after it; on a CPU the exact reference of every other way.

Limits of the operator on a GPU (torch 2.11): more than 16 rows, K and N multiples of 8; rows are padded here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gpusq_onnx.runtime.kernels.arithmetic import Tail, padded_rows

LEAST_ROWS, ROW_STEP = 32, 8


class DenseLinear(nn.Module):
    """INT8 codes [M, K] to the tail's result [M, N].

    Args:
        codes: the weight's INT8 codes [N, K].
        tail: what follows the product.
    """

    codes: Tensor

    def __init__(self, codes: Tensor, tail: Tail) -> None:
        super().__init__()
        self.register_buffer("codes", codes.contiguous())
        self.tail = tail

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = self.tail(int_product(x, self.codes))
        return product


def int_product(x: Tensor, codes: Tensor) -> Tensor:
    """x[M, K] codes[N, K]ᵀ as INT32 [M, N], exactly."""
    rows = x.shape[0]
    if x.is_cuda:
        x = padded_rows(x, ROW_STEP, LEAST_ROWS)
    return torch._int_mm(x, codes.t())[:rows]


def why_not(n: int, k: int, device: torch.device) -> str | None:
    """Why this way cannot serve a weight [n, k] on `device`; None: it can."""
    if not hasattr(torch, "_int_mm"):
        return f"torch {torch.__version__} has no _int_mm"
    if device.type == "cuda" and (n % 8 or k % 8):
        return f"_int_mm wants multiples of 8, the weight is [{n}, {k}]"
    return None
