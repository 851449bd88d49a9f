"""What was learned goes back, nothing else changes, and what does not fit is refused before anything is stored."""

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx_cases import Array, model_of, values
from test_shapes import n

from gpusq_onnx.errors import InvariantError, UnsupportedModelError
from gpusq_onnx.graph import io
from gpusq_onnx.graph.model import Model, values_of
from gpusq_onnx.torchgraph.convert import convert
from gpusq_onnx.torchgraph.write_back import write_back

ASSETS = Path(__file__).parents[1] / "assets"


def linear(dtype: type = np.float32) -> Model:
    nodes = [n("MatMul", "x w", "p"), n("Add", "p b", "y")]
    constants = {"w": values(6, 5).astype(dtype), "b": values(5).astype(dtype)}
    return model_of(nodes, constants, (6,), ["y"], kind=dtype)[0]


def stored(model: Model) -> dict[str, Array]:
    return {constant.name: values_of(constant).copy() for constant in model.constants()}


@pytest.mark.parametrize("asset", ["digits_vit.onnx", "digits_vit_legacy17.onnx"])
def test_what_learned_nothing_changes_no_byte(asset: str) -> None:
    model = io.load(ASSETS / asset)
    before = io.to_bytes(model)
    assert write_back(convert(model), model) == []
    assert io.to_bytes(model) == before


def test_what_was_learned_is_computed_by_the_graph(tmp_path: Path) -> None:
    from gpusq_onnx.runtime.ort import Session

    model = io.load(ASSETS / "digits_vit.onnx")
    network = convert(model)
    x = torch.randn(4, 3, 32, 32)
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    network(x)["logits"].square().sum().backward()
    optimizer.step()
    changed = write_back(network, model)
    assert set(changed) == set(network.initializers.values())
    expected = network(x)["logits"].detach().numpy()
    io.save(model, tmp_path / "learned.onnx")
    found = Session(tmp_path / "learned.onnx").run({"pixel_values": x.numpy()})["logits"]
    np.testing.assert_allclose(found, expected, 1e-4, 1e-5)


def test_only_what_changed_is_named_and_stored() -> None:
    model = linear()
    network = convert(model)
    before = stored(model)
    with torch.no_grad():
        network.get_parameter("body.b")[2] += 1
    assert write_back(network, model) == ["b"]
    after = stored(model)
    assert np.flatnonzero(after["b"] != before["b"]).tolist() == [2]
    assert after["w"].tobytes() == before["w"].tobytes()


def test_half_precision_is_learned_in_float32_and_stored_as_it_was() -> None:
    model = linear(np.float16)
    network = convert(model)
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert write_back(network, model) == []
    with torch.no_grad():
        network.get_parameter("body.w").mul_(1.5)
    assert write_back(network, model) == ["w"]
    assert stored(model)["w"].dtype == np.float16
    with torch.no_grad():
        network.get_parameter("body.w").fill_(1e6)
    with pytest.raises(InvariantError, match="float16"):
        write_back(network, model)


@pytest.mark.parametrize(("dtype", "floor"), [(np.float32, 2.0**-60), (np.float16, 2.0**-14)])
def test_scales_are_kept_above_zero(dtype: type, floor: float) -> None:
    nodes = [n("QuantizeLinear", "x s z", "q"), n("DequantizeLinear", "q s z", "y")]
    model, _ = model_of(nodes, {"s": np.array(0.1, dtype), "z": np.array(0, np.int8)}, (6,), ["y"], kind=dtype)
    network = convert(model)
    with torch.no_grad():
        network.get_parameter("body.s").fill_(-3)
    assert write_back(network, model) == ["s"]
    assert stored(model)["s"] == dtype(floor)
    assert stored(model)["s"].shape == ()


def test_another_model_is_refused_and_left_as_it_was() -> None:
    network, other = convert(linear()), linear()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    constant = next(c for c in other.constants() if c.name == "w")
    constant.values = values(6, 4)
    before = stored(other)
    with pytest.raises(UnsupportedModelError, match="'w'"):
        write_back(network, other)
    assert all(value.tobytes() == before[name].tobytes() for name, value in stored(other).items())


def test_what_is_not_finite_is_not_stored() -> None:
    model = linear()
    network = convert(model)
    with torch.no_grad():
        network.get_parameter("body.w")[0, 0] = float("nan")
    with pytest.raises(InvariantError, match="'w'"):
        write_back(network, model)
