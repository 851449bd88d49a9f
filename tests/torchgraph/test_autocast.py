"""What autocast makes of an operator inside torch.vmap is what it makes of it outside, for data of either type."""

import pytest
import torch
from onnx_cases import model_of, values
from test_shapes import n
from torch.nn import functional

from gpusq_onnx.torchgraph import functions
from gpusq_onnx.torchgraph.autocast import autocast_kept
from gpusq_onnx.torchgraph.convert import convert

CPU = torch.device("cpu")
MATRIX, KERNEL, VECTOR = torch.ones(8, 8), torch.ones(8, 8, 1, 1), torch.ones(8)
OPERATORS = {
    "linear": lambda x: functional.linear(x, MATRIX, VECTOR),
    "matmul": lambda x: torch.matmul(x, MATRIX),
    "convolution": lambda x: functional.conv2d(x, KERNEL, VECTOR),
    "convolution by name": lambda x: functional.conv2d(x, weight=KERNEL, bias=VECTOR),
    "convolution without bias": lambda x: torch.conv2d(x, KERNEL),
    "transposed convolution": lambda x: functional.conv_transpose2d(x, KERNEL, VECTOR),
    "batch norm": lambda x: functional.batch_norm(x, VECTOR, VECTOR, VECTOR, VECTOR),
    "layer norm": lambda x: functional.layer_norm(x, (8,), VECTOR, VECTOR),
    "prelu": lambda x: functional.prelu(x, VECTOR),
    "attention": lambda x: functional.scaled_dot_product_attention(x, x, x, MATRIX[:4, :4]),
    "our attention": lambda x: functions.attention(x, x, x, MATRIX[:4, :4], False, 0.3),
    "softmax": lambda x: functional.softmax(x, -1),
    "interpolate": lambda x: functional.interpolate(x, scale_factor=2.0, mode="bilinear"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPERATORS)
def test_the_types_are_those_outside(name: str, dtype: torch.dtype) -> None:
    x = torch.rand(3, 2, 8, 4, 8, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        outside = OPERATORS[name](x[0])
        with autocast_kept(CPU):
            inside = torch.vmap(OPERATORS[name])(x)
    assert inside.dtype == outside.dtype
    torch.testing.assert_close(inside[0], outside, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_few_bits_is_that_of_float32_on_a_cpu(masked: bool) -> None:
    q, k, v = torch.randn(3, 2, 2, 5, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    mask = torch.linspace(-3, 3, 25).reshape(5, 5) if masked else None
    wide = functional.scaled_dot_product_attention(q.float(), k.float(), v.float(), mask, scale=0.3)
    with torch.autocast("cpu", torch.bfloat16):
        found = functions.attention(q, k, v, mask, False, 0.3)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, wide.bfloat16(), rtol=0, atol=0)


def test_without_autocast_and_in_float64_nothing_is_cast() -> None:
    x = torch.rand(3, 2, 8, 4, 8)
    with autocast_kept(CPU):
        assert torch.vmap(OPERATORS["linear"])(x).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16), autocast_kept(CPU):
        double = torch.vmap(lambda x: functional.linear(x, MATRIX.double(), VECTOR.double()))(x.double())
    assert double.dtype == torch.float64


def test_a_graph_of_a_fixed_batch_trains_where_a_product_meets_a_convolution() -> None:
    """As talking heads (EfficientFormerV2, CaiT) have it: scores of a MatMul go through a 1 x 1 Conv with a bias."""
    nodes = [n("MatMul", "x x", "scores"), n("Conv", "scores w b", "y")]
    model, _ = model_of(nodes, {"w": values(4, 4, 1, 1), "b": values(4)}, (4, 8, 8), ["y"], batch=1)
    network = convert(model)
    assert network.fixed == 1
    with torch.autocast("cpu", torch.bfloat16):
        y = network(torch.rand(3, 4, 8, 8))["y"]
    y.float().sum().backward()
    assert y.shape == (3, 4, 8, 8)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in network.parameters())
