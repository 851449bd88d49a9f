"""Quantisers on float grids and in blocks: ONNX's values bit by bit, gradients by the formula, codes that stay."""

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx import NodeProto, TensorProto
from onnx.reference import ReferenceEvaluator
from onnx_cases import Array, model_of, values
from test_shapes import n

from gpusq_onnx.errors import UnsupportedModelError
from gpusq_onnx.quant.dynamic import dynamic_quantize
from gpusq_onnx.quant.formats import FORMATS, FP4, FP8, INT4, Format, fake_quantize
from gpusq_onnx.quant.scales import Scales
from gpusq_onnx.runtime.ort import Session
from gpusq_onnx.torchgraph.convert import convert
from gpusq_onnx.torchgraph.rounding import FloatGrid, fake_quantise, gradient_factor, quantise_at_run_time

FLOATS = [FP8, FP4, FORMATS["fp8-e5m2"]]
PAIR = [n("QuantizeLinear", "x s z", "q"), n("DequantizeLinear", "q s z", "y")]


def spread(count: int, seed: int = 0) -> Array:
    """Values over all binades of FP8, signs and zeros among them."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(count) * 2.0 ** rng.integers(-12, 11, count)
    x[::17] = 0
    return x.astype(np.float32)


@pytest.mark.parametrize("fmt", FLOATS, ids=lambda fmt: fmt.name)
def test_one_arithmetic_with_the_numpy_formats(fmt: Format) -> None:
    x = spread(20_000)
    halfway = (np.arange(-64, 64) / 16).astype(np.float32)
    for scale in (np.float32(1), np.float32(0.0317)):
        for data in (x, halfway):
            found = fake_quantise(
                torch.from_numpy(data), torch.tensor(scale), fmt.lowest, fmt.largest, 1.0, 2.0**-60, FloatGrid.of(fmt)
            )
            np.testing.assert_array_equal(found.numpy(), fake_quantize(data, scale, fmt))


def test_fp8_pairs_are_onnxruntimes_bit_by_bit() -> None:
    zero = np.array(0, ml_dtypes.float8_e4m3fn)
    model, data = model_of(PAIR, {"s": np.array(0.031, np.float32), "z": zero}, (400,), ["y"])
    x = spread(1200).reshape(3, 400)
    network = convert(model)
    expected = Session(data, optimize=False).run({"x": x})["y"]
    np.testing.assert_array_equal(network(torch.from_numpy(x))["y"].detach().numpy(), expected)
    (quantiser,) = network.quantisers
    assert (quantiser.qmin, quantiser.qmax, quantiser.grid) == (-448, 448, FloatGrid(3, 2.0**-6))


@pytest.mark.parametrize("axis", [None, 1])
def test_gradients_on_a_float_grid(axis: int | None) -> None:
    x = (values(7, 5) * 20).astype(np.float32)
    leaf = torch.from_numpy(x).requires_grad_()
    scale = torch.full((), 0.05) if axis is None else torch.linspace(0.02, 0.06, 5)
    shaped = scale.clone().requires_grad_()
    grad = torch.from_numpy(values(7, 5, seed=2))
    by = shaped if axis is None else shaped.reshape(1, 5)
    fake_quantise(leaf, by, -448, 448, 0.25, 1e-9, FloatGrid.of(FP8)).backward(grad)
    v = leaf.detach() / scale
    q = v.clamp(-448, 448).to(torch.float8_e4m3fn).float()
    inside = v.abs() <= 448
    expected = torch.where(inside, q - v, q) * grad * 0.25
    torch.testing.assert_close(leaf.grad, grad * inside)
    torch.testing.assert_close(shaped.grad, expected.sum() if axis is None else expected.sum(0), rtol=1e-4, atol=1e-4)
    assert bool(inside.any()) and not bool(inside.all())


def test_the_gradients_factor_makes_relative_steps_equal() -> None:
    assert gradient_factor(100, 127, None) == pytest.approx((100 * 127) ** -0.5)
    x = torch.from_numpy(values(4096)) / 4 * 448
    error = fake_quantise(x, torch.tensor(1.0), -448, 448, 1.0, 1e-9, FloatGrid.of(FP8)) - x
    ratio = float(error.norm() * x.norm()) / 4096**0.5
    assert 0.5 < ratio * gradient_factor(4096, 448, FloatGrid.of(FP8)) < 2


def block_graph(kind: str, axis: int = 0) -> tuple[list[NodeProto], dict[str, Array], Array]:
    """MatMul with a weight [64, 6] in blocks of 16: a float before Q/DQ or codes; its value as ONNX defines it."""
    fmt, grid = (INT4, np.dtype("int4")) if kind.startswith("int4") else (FP4, np.dtype("float4_e2m1fn"))
    w = values(64, 6)
    scale = (np.abs(w).reshape(4, 16, 6).max(1) / fmt.largest * 0.9).astype(np.float32)  # some are outside
    head, constants, outer = [], {}, None
    if fmt is FP4:
        outer = float(np.float32(scale.max() / 448))
        small = (scale / np.float32(outer)).astype(ml_dtypes.float8_e4m3fn)
        constants |= {"s8": small, "g": np.array(outer, np.float32)}
        head = [n("DequantizeLinear", "s8 g", "s")]
        scale = small.astype(np.float32)
    else:
        constants["s"] = scale
    blocks = {"axis": axis, "block_size": 16}
    scales = Scales(scale, 0, 16, outer)
    if kind.endswith("codes"):
        constants["wq"] = fmt.round_steps(w / scales.along(w.shape)).astype(grid)
        body = [n("DequantizeLinear", "wq s", "wd", **blocks)]
    else:
        constants |= {"w": w, "z": np.zeros(scale.shape, grid)}
        body = [n("QuantizeLinear", "w s z", "wq", **blocks), n("DequantizeLinear", "wq s z", "wd", **blocks)]
    return [*head, *body, n("MatMul", "x wd", "y")], constants, fake_quantize(w, scales, fmt)


@pytest.mark.parametrize("kind", ["int4", "int4 codes", "fp4", "fp4 codes"])
def test_blocks_are_what_onnx_says(kind: str) -> None:
    nodes, constants, expected = block_graph(kind)
    model, data = model_of(nodes, constants, (64,), ["y"], opset=23)
    network = convert(model)
    eye = np.eye(64, dtype=np.float32)
    found = network(torch.from_numpy(eye))["y"]
    np.testing.assert_array_equal(found.detach().numpy(), expected)
    if kind.startswith("int4"):
        reference = ReferenceEvaluator(onnx.load_from_string(data)).run(None, {"x": eye})[0]
        np.testing.assert_array_equal(found.detach().numpy(), reference)
    if kind != "fp4 codes":  # of which nothing learns
        found.square().sum().backward()
    grads = {network.initializers[name]: parameter.grad for name, parameter in network.named_parameters()}
    assert set(grads) == {"int4": {"w", "s"}, "int4 codes": {"s"}, "fp4": {"w"}, "fp4 codes": set()}[kind]
    assert all(grad is not None and bool(grad.any()) for grad in grads.values())


def test_the_scales_of_blocks_get_the_gradient_of_their_own_weights() -> None:
    nodes, constants, _ = block_graph("int4")
    model, _ = model_of(nodes, constants, (64,), ["y"], opset=21)
    network = convert(model)
    (quantiser,) = network.quantisers
    assert (quantiser.axis, quantiser.block) == (0, 16)
    assert quantiser.factor == pytest.approx((16 * 7) ** -0.5)
    network(torch.eye(64))["y"].sum().backward()
    scale = network.get_parameter("body.s")
    v = constants["w"].reshape(4, 16, 6) / constants["s"][:, None]
    by_hand = np.where((v >= -8) & (v <= 7), np.rint(v) - v, np.clip(np.rint(v), -8, 7)).sum(1) * quantiser.factor
    np.testing.assert_allclose(scale.grad.numpy(), by_hand, rtol=1e-4, atol=1e-5)


def test_quantising_at_run_time_is_the_numpy_one_and_passes_gradients() -> None:
    x = spread(6 * 64).reshape(6, 64)
    x[0, :16] = 0
    outer = 0.0021
    leaf = torch.from_numpy(x).requires_grad_()
    found = quantise_at_run_time(leaf, torch.tensor(outer), 16, FP4, FP8)
    np.testing.assert_array_equal(found.detach().numpy(), dynamic_quantize(x, float(np.float32(outer)), FP4, 16))
    found.sum().backward()
    assert bool((leaf.grad == 1).all())


def test_blocks_that_do_not_divide_the_tensor_are_refused() -> None:
    z = np.zeros((5, 6), np.dtype("int4"))
    nodes = [n("QuantizeLinear", "w s z", "wq", axis=0, block_size=16),
             n("DequantizeLinear", "wq s z", "wd", axis=0, block_size=16), n("MatMul", "x wd", "y")]  # fmt: skip
    model, _ = model_of(nodes, {"w": values(66, 6), "s": np.ones((5, 6), np.float32), "z": z}, (66,), ["y"], opset=21)
    with pytest.raises(UnsupportedModelError, match="trained through") as caught:
        convert(model)
    assert "blocks of 16" in str(caught.value)


def test_codes_of_eight_float_bits_stay_and_their_scale_learns() -> None:
    codes = values(6, 5).astype(ml_dtypes.float8_e4m3fn)
    nodes = [n("DequantizeLinear", "wq s", "wd", axis=1), n("MatMul", "x wd", "y")]
    model, data = model_of(nodes, {"wq": codes, "s": np.full(5, 0.1, np.float32)}, (6,), ["y"])
    network = convert(model)
    assert network.quantisers == [] and network.initializers == {"body.s": "s"}
    x = values(3, 6)
    found = network(torch.from_numpy(x))["y"]
    expected = Session(data, optimize=False).run({"x": x})["y"]
    np.testing.assert_allclose(found.detach().numpy(), expected, 1e-5, 1e-6)
    found.sum().backward()
    assert bool(network.get_parameter("body.s").grad.any())
    assert onnx.load_from_string(data).graph.initializer[0].data_type == TensorProto.FLOAT8E4M3FN
