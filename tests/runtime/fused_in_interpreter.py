"""Run with TRITON_INTERPRET=1: the Triton kernel on the CPU against the reference, every tail, ragged shapes too."""

import torch

from gpusq_onnx.runtime.kernels.arithmetic import Tail
from gpusq_onnx.runtime.kernels.dense import DenseLinear
from gpusq_onnx.runtime.kernels.fused import FusedLinear, Tile


def main() -> None:
    random = torch.Generator().manual_seed(0)
    middle, out = torch.tensor(0.05), torch.tensor(0.02)
    for rows, n, k, tile in [(37, 48, 80, Tile(32, 64, 64)), (64, 64, 64, Tile(32, 32, 32, group=2))]:
        x = torch.randint(-128, 128, (rows, k), generator=random, dtype=torch.int8)
        w = torch.randint(-127, 128, (n, k), generator=random, dtype=torch.int8)
        alpha, bias = torch.rand(n, generator=random) * 1e-4, torch.randn(n, generator=random)
        for tail in (
            Tail(alpha),
            Tail(alpha, bias, middle=middle),
            Tail(alpha, bias, activation="relu"),
            Tail(alpha, bias, activation="gelu"),
            Tail(alpha, bias, activation="gelu_tanh", out=out),
            Tail(alpha, bias, middle=middle, activation="gelu", out=out),
        ):
            found, expected = FusedLinear(w, tail, tile)(x), DenseLinear(w, tail)(x)
            assert found.dtype == expected.dtype, tail.kind
            if tail.out is None:
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)
            else:
                assert int((found.int() - expected.int()).abs().max()) <= 1, tail.kind
                assert float((found != expected).float().mean()) < 0.002, tail.kind


if __name__ == "__main__":
    main()
