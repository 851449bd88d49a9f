"""Q/DQ pairs: onnxruntime's values bit by bit, the gradients of the paper, and scales that stay positive."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import NodeProto
from onnx_cases import Array, ints, model_of, values
from test_shapes import n

from gpusq_onnx.errors import UnsupportedModelError
from gpusq_onnx.quant.formats import INT8, fake_quantize
from gpusq_onnx.runtime.ort import Session
from gpusq_onnx.torchgraph.convert import convert
from gpusq_onnx.torchgraph.quantiser import floor_of
from gpusq_onnx.torchgraph.rounding import fake_quantise

SCALE = np.array(0.031, np.float32)
PAIR = [n("QuantizeLinear", "x s z", "q"), n("DequantizeLinear", "q s z", "y")]
CHANNELS = (np.abs(values(5)) + 0.1).astype(np.float32) / 50


def weight_graph(axis: int = 1, codes: Array | None = None) -> tuple[list[NodeProto], dict[str, Array]]:
    """MatMul with a weight [6, 5] before a per-channel pair, or stored as codes."""
    tail = [n("DequantizeLinear", "wq s z", "wd", axis=axis), n("MatMul", "x wd", "y")]
    constants = {"s": CHANNELS, "z": np.zeros(5, np.int8)}
    if codes is not None:
        return tail, {**constants, "wq": codes}
    return [n("QuantizeLinear", "w s z", "wq", axis=axis), *tail], {**constants, "w": values(6, 5)}


@pytest.mark.parametrize("zero", [np.array(0, np.int8), np.array(7, np.int8), np.array(128, np.uint8)])
def test_values_are_onnxruntimes_bit_by_bit(zero: Array) -> None:
    model, data = model_of(PAIR, {"s": SCALE, "z": zero}, (400,), ["y"])
    x = np.concatenate([values(3, 200) * 3, (np.arange(600) - 300).reshape(3, 200) * 0.0155], 1).astype(np.float32)
    network = convert(model)
    expected = Session(data, optimize=False).run({"x": x})["y"]
    np.testing.assert_array_equal(network(torch.from_numpy(x))["y"].detach().numpy(), expected)
    (quantiser,) = network.quantisers
    assert (quantiser.qmin, quantiser.qmax) == ((-128, 127) if zero == 128 else (-128 - int(zero), 127 - int(zero)))
    quantiser.enabled = False
    np.testing.assert_array_equal(network(torch.from_numpy(x))["y"].detach().numpy(), x)


@settings(max_examples=30)
@given(st.floats(2.0**-20, 10.0), st.integers(0, 10**6))
def test_one_arithmetic_with_the_numpy_formats(scale: float, seed: int) -> None:
    x, s = values(40, seed=seed), np.float32(scale)
    found = fake_quantise(torch.from_numpy(x), torch.tensor(s), -128, 127, 1.0, floor_of(np.dtype("f4")))
    np.testing.assert_array_equal(found.numpy(), fake_quantize(x, s, INT8))


def test_a_weight_has_its_scales_along_its_axis_and_zeros_stay_zero() -> None:
    nodes, constants = weight_graph()
    constants["w"][::2] = 0
    model, data = model_of(nodes, constants, (6,), ["y"])
    network = convert(model)
    (quantiser,) = network.quantisers
    assert (quantiser.scale, quantiser.weight, quantiser.axis) == ("s", "w", 1)
    assert quantiser.factor == pytest.approx((6 * 127) ** -0.5)
    x = values(3, 6)
    expected = Session(data, optimize=False, exact_qdq=True).run({"x": x})["y"]
    np.testing.assert_allclose(network(torch.from_numpy(x))["y"].detach().numpy(), expected, 1e-5, 1e-6)
    weight, scale = network.get_parameter("body.w"), network.get_parameter("body.s")
    assert not bool(quantiser(weight, scale)[::2].any())


@pytest.mark.parametrize("axis", [None, 1])
def test_gradients_are_the_papers(axis: int | None) -> None:
    x = torch.from_numpy(values(7, 5) * 4).double().requires_grad_()
    scale = torch.full((), 0.05) if axis is None else torch.linspace(0.02, 0.06, 5)
    shaped = scale.clone().requires_grad_()
    grad = torch.from_numpy(values(7, 5, seed=2)).double()
    fake_quantise(x, shaped if axis is None else shaped.reshape(1, 5), -128, 127, 0.25, 1e-9).backward(grad)
    v = (x.detach().float() / scale).double()
    inside = (v >= -128) & (v <= 127)
    by_scale = torch.where(inside, v.round() - v, v.clamp(-128, 127)) * grad * 0.25
    torch.testing.assert_close(x.grad, grad * inside)
    expected = by_scale.sum() if axis is None else by_scale.sum(0)
    torch.testing.assert_close(shaped.grad.double(), expected, rtol=1e-4, atol=1e-5)
    assert bool((~inside).any()) and bool(inside.any())


def test_a_scale_below_zero_is_raised_in_the_forward_pass_and_finds_back() -> None:
    scale = torch.tensor(-0.01, requires_grad=True)
    x = torch.from_numpy(values(50))
    out = fake_quantise(x, scale, -128, 127, 1.0, 2.0**-14)
    assert bool(torch.isfinite(out).all())
    (out - x).square().sum().backward()
    assert scale.grad is not None and float(scale.grad) < 0  # a step down the gradient raises the scale


def test_the_gradients_factor_counts_one_image_and_not_the_batch() -> None:
    model, _ = model_of(PAIR, {"s": SCALE, "z": np.array(0, np.int8)}, (3, 16), ["y"])
    network = convert(model)
    (quantiser,) = network.quantisers
    assert quantiser.factor == pytest.approx((3 * 16 * 127) ** -0.5)
    grads = []
    for repeats in (1, 4):
        network.zero_grad()
        network(torch.from_numpy(values(2, 3, 16)).repeat(repeats, 1, 1))["y"].square().mean().backward()
        grads.append(network.get_parameter("body.s").grad)
    torch.testing.assert_close(*grads)


def test_stored_codes_are_constants_and_their_scale_is_learned() -> None:
    codes = np.arange(-15, 15, dtype=np.int8).reshape(6, 5)
    nodes, constants = weight_graph(codes=codes)
    model, data = model_of(nodes, constants, (6,), ["y"])
    network = convert(model)
    assert network.quantisers == []
    assert network.initializers == {"body.s": "s"}
    x = values(3, 6)
    expected = Session(data, optimize=False, exact_qdq=True).run({"x": x})["y"]
    found = network(torch.from_numpy(x))["y"]
    np.testing.assert_allclose(found.detach().numpy(), expected, 1e-5, 1e-6)
    found.sum().backward()
    by_hand = (x.sum(0)[:, None] * codes).sum(0) * (6 * 127) ** -0.5
    np.testing.assert_allclose(network.get_parameter("body.s").grad.numpy(), by_hand, 1e-4)


def test_a_shared_scale_has_one_owner() -> None:
    nodes = [*PAIR[:1], n("DequantizeLinear", "q s z", "a"), n("Relu", "a", "b"), n("QuantizeLinear", "b s z", "r"),
             n("DequantizeLinear", "r s z", "y")]  # fmt: skip
    model, _ = model_of(nodes, {"s": SCALE, "z": np.array(0, np.int8)}, (16,), ["y"])
    network = convert(model)
    assert len(network.quantisers) == 2
    assert [name for name, _ in network.named_parameters()] == ["body.s"]


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        ([PAIR[0], n("DequantizeLinear", "q s2 z", "y")], "another scale"),
        ([PAIR[0], n("Cast", "q", "y", to=1)], "codes"),
        ([PAIR[0], n("Transpose", "q", "t"), n("DequantizeLinear", "t s z", "y")], "codes"),
        ([n("QuantizeLinear", "x s z", "q", block_size=4, axis=1), PAIR[1]], "block"),
    ],
)
def test_what_no_quantiser_can_be_made_of_is_refused(nodes: list[NodeProto], why: str) -> None:
    constants = {"s": SCALE, "s2": SCALE * 2, "z": np.array(0, np.int8)}
    model, _ = model_of(nodes, constants, (4, 6), ["y"])
    with pytest.raises(UnsupportedModelError, match=why):
        convert(model)


def test_the_pair_under_vmap_gives_the_same_values_and_gradients() -> None:
    nodes, constants = weight_graph()
    outer = [n("QuantizeLinear", "x sx zx", "xq"), n("DequantizeLinear", "xq sx zx", "xd")]
    tail = [*nodes[:2], n("MatMul", "xd wd", "p"), n("Reshape", "p flat", "y")]
    constants |= {"sx": SCALE, "zx": np.array(0, np.int8)}
    free, _ = model_of([*outer, *tail], {**constants, "flat": ints(0, -1)}, (4, 6), ["y"])
    fixed, _ = model_of([*outer, *tail], {**constants, "flat": ints(1, -1)}, (4, 6), ["y"], batch=1)
    x = torch.from_numpy(values(3, 4, 6))
    found = []
    for model in (free, fixed):
        network = convert(model)
        out = network(x)["y"]
        out.square().sum().backward()
        found.append([out.detach(), *(p.grad for _, p in sorted(network.named_parameters()))])
    torch.testing.assert_close(*found)
