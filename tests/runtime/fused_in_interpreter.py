"""Run with TRITON_INTERPRET=1: the Triton kernels on the CPU against their references, ragged shapes too."""

import torch

from gpusq_onnx.runtime.kernels.arithmetic import Tail
from gpusq_onnx.runtime.kernels.attention import reference
from gpusq_onnx.runtime.kernels.attention_kernel import launch
from gpusq_onnx.runtime.kernels.dense import DenseLinear
from gpusq_onnx.runtime.kernels.fused import FusedLinear, Tile


def linears() -> None:
    """Every tail."""
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


def heads() -> None:
    """Attention: float and INT8 out, keys that fill a power of two and that do not, queries in another layout."""
    random = torch.Generator().manual_seed(1)
    for batch, count, tokens, keys, head in [(2, 2, 17, 17, 16), (1, 3, 70, 64, 32)]:
        shapes = [(batch, tokens, count, head), (batch, count, keys, head), (batch, count, keys, head)]
        q, k, v = (torch.randint(-127, 128, shape, generator=random, dtype=torch.int8) for shape in shapes)
        q = q.transpose(1, 2)
        scales = torch.tensor([0.02, 0.015, 1 / 127, 0.03])
        for out in (None, torch.tensor(0.01)):
            found = launch(q, k, v, scales, out, torch.float32)
            expected = reference(q, k, v, scales, out, torch.float32)
            assert found.dtype == expected.dtype and found.shape == expected.shape
            moved = (found.float() - expected.float()).abs() > (1e-4 if out is None else 0.5)
            assert float(moved.float().mean()) < 0.02  # a probability next to a tie moves a row of outputs a little
            assert float((found.float() - expected.float()).norm() / expected.float().norm()) < 0.01


def main() -> None:
    linears()
    heads()


if __name__ == "__main__":
    main()
