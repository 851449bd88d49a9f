"""Which initializers are trained: by role, never because they are floats."""

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx_cases import ints, model_of, values
from test_shapes import n

from gpusq_onnx.graph import io
from gpusq_onnx.torchgraph.convert import convert
from gpusq_onnx.torchgraph.roles import roles_of

ASSETS = Path(__file__).parents[1] / "assets"


def test_masks_numbers_and_the_inputs_own_normalisation_are_constants() -> None:
    nodes = [
        n("Sub", "x mean", "centred"), n("Mul", "centred deviation", "normal"), n("MatMul", "normal w", "h"),
        n("Add", "h bias", "b"), n("Mul", "b layer_scale", "g"), n("Add", "g mask", "masked"),
        n("Add", "masked position", "p"), n("Mul", "p number", "y"),
    ]  # fmt: skip
    mask = np.where(np.eye(4, 5, dtype=np.float32) > 0, np.float32(0), np.float32(-100))
    constants = {"mean": values(6), "deviation": values(6), "w": values(6, 5), "bias": values(5), "mask": mask}
    constants |= {"layer_scale": values(5), "position": values(1, 4, 5), "number": np.array(2.5, np.float32)}
    model, _ = model_of(nodes, constants, (4, 6), ["y"])
    expected = {"w": "weight", "bias": "bias", "layer_scale": "norm", "position": "position"}
    assert roles_of(model) == expected
    assert roles_of(model, ["norm"]) == {"layer_scale": "norm"}
    network = convert(model, train=["weight"])
    assert [network.initializers[name] for name, _ in network.named_parameters()] == ["w"]
    assert list(network.roles.values()) == ["weight"]


def test_initializers_shared_through_identity_and_tied_weights_are_one_parameter() -> None:
    nodes = [
        n("Identity", "bias", "same"), n("MatMul", "x w", "a"), n("Add", "a bias", "b"), n("MatMul", "b w", "c"),
        n("Add", "c same", "y"),
    ]  # fmt: skip
    model, _ = model_of(nodes, {"w": values(6, 6), "bias": values(6)}, (4, 6), ["y"])
    network = convert(model)
    assert sorted(network.initializers.values()) == ["bias", "w"]
    network(torch.ones(2, 4, 6))["y"].sum().backward()
    grads = {network.initializers[name]: p.grad for name, p in network.named_parameters()}
    weight = torch.from_numpy(values(6, 6))
    expected = 8 * (torch.ones(6) + weight.sum(1))  # through both Adds
    torch.testing.assert_close(grads["bias"], expected)


def test_what_learned_queries_are_projected_with_is_a_weight_too() -> None:
    nodes = [n("Gather", "table rows", "queries"), n("MatMul", "queries w", "q"), n("Add", "x q", "y")]
    model, _ = model_of(nodes, {"table": values(9, 6), "rows": ints(1, 3, 0, 2), "w": values(6, 6)}, (4, 6), ["y"])
    assert roles_of(model) == {"table": "position", "w": "weight"}


def test_a_table_is_judged_as_it_is_added_not_as_it_is_stored() -> None:
    nodes = [
        n("MatMul", "x w", "h"), n("Reshape", "table shape", "square"),
        n("Transpose", "square", "bias", perm=[2, 0, 1]),
        n("Add", "h bias", "b"), n("Add", "b boxes", "y"),
    ]  # fmt: skip
    constants = {"w": values(6, 5), "table": values(20, 3), "shape": ints(4, 5, 3), "boxes": values(5, 4)}
    model, _ = model_of(nodes, constants, (3, 4, 6), ["y"])
    assert "table" not in roles_of(model)  # nothing says what becomes of three columns
    model.graph.tensors()["bias"].shape = [3, 4, 5]
    assert roles_of(model) == {"w": "weight", "table": "position"}


@pytest.mark.parametrize("asset", ["digits_vit.onnx", "digits_vit_legacy17.onnx"])
def test_all_of_a_vision_transformer_is_found(asset: str) -> None:
    model = io.load(ASSETS / asset)
    network = convert(model)
    count = sum(p.numel() for p in network.parameters())
    stored = sum(int(np.prod(c.shape)) for c in model.constants() if c.dtype.kind == "f" and np.prod(c.shape) > 1)
    assert count == stored
    assert set(network.roles) == {name for name, _ in network.named_parameters()} == set(network.initializers)
    network(torch.randn(2, 3, 32, 32))["logits"].square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in network.parameters())
