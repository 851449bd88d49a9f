"""Shapes computed in the graph, constants that depend on the batch, and fixed batches: held against onnxruntime."""

import operator
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from onnx import NodeProto, helper, numpy_helper
from onnx_cases import Array, ints, model_of, values

from gpusq_onnx.errors import UnsupportedModelError, UsageError
from gpusq_onnx.runtime.ort import Session
from gpusq_onnx.torchgraph.builder import Affine, Builder, NotAffine
from gpusq_onnx.torchgraph.convert import convert
from gpusq_onnx.torchgraph.network import Network


def n(op: str, inputs: str, outputs: str, **attributes: object) -> NodeProto:
    read = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(op, read, outputs.split(), name=f"{op}_{outputs}", **attributes)


def held(
    nodes: Sequence[NodeProto],
    constants: dict[str, Array],
    shape: Sequence[int] = (4, 6),
    *,
    batch: int | str = "batch",
    tolerance: float = 2e-6,
) -> Network:
    """Convert a graph with output y, compare it at two batch sizes, and return the network."""
    model, data = model_of(nodes, constants, shape, ["y"], batch=batch)
    network, session = convert(model), Session(data, optimize=False)
    for size in (2, 3):
        x = values(size, *shape, seed=size)
        if isinstance(batch, int):
            rows = np.split(x, size // batch)
            expected = np.concatenate([session.run({"x": row})["y"] for row in rows])
        else:
            expected = session.run({"x": x})["y"]
        found = network(torch.from_numpy(x))["y"].detach().numpy()
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, 1e-5, tolerance)
        if isinstance(batch, int) and batch > 1:
            break
    return network


def calls(network: Network, function: object) -> int:
    return sum(node.target is function for node in network.body.graph.nodes)


def test_a_reshape_to_a_computed_shape_keeps_the_batch_open() -> None:
    nodes = [
        n("Shape", "x", "shape"),
        n("Gather", "shape first", "size", axis=0),
        n("Unsqueeze", "size zero", "sizes"),
        n("Concat", "sizes rest", "target", axis=0),
        n("Reshape", "x target", "y"),
    ]
    network = held(nodes, {"first": np.array(0), "zero": ints(0), "rest": ints(2, 12)})
    assert {node.op for node in network.body.graph.nodes} == {"placeholder", "call_function", "output"}
    assert calls(network, torch.reshape) == 1


def test_the_windows_of_a_map_are_counted_with_the_batch() -> None:
    nodes = [
        n("Reshape", "x split", "cut"),
        n("Transpose", "cut", "turned", perm=[0, 1, 3, 2, 4]),
        n("Reshape", "turned windows", "y"),
    ]
    held(nodes, {"split": ints(0, 2, 2, 2, 3), "windows": ints(-1, 2, 3)})


def test_a_filled_tensor_of_the_batch_size_is_one_row_expanded() -> None:
    nodes = [
        n("Shape", "x", "shape"),
        n("ConstantOfShape", "shape", "ones", value=numpy_helper.from_array(np.ones(1, np.float32))),
        n("CumSum", "ones axis", "count"),
        n("Sin", "count", "position"),
        n("Sub", "x position", "y"),
    ]
    network = held(nodes, {"axis": np.array(2)})
    assert [tuple(buffer.shape) for buffer in network.body.buffers()] == [(1, 4, 6)]
    assert calls(network, torch.sin) == 0


def test_a_range_over_the_batch_is_computed_where_it_is_needed() -> None:
    nodes = [
        n("Shape", "x", "sizes", start=0, end=1),
        n("Squeeze", "sizes zero", "size"),
        n("Range", "nought size one", "numbers"),
        n("Cast", "numbers", "floats", to=1),
        n("Reshape", "floats column", "rows"),
        n("Mul", "x rows", "y"),
    ]
    held(nodes, {"zero": ints(0), "nought": np.array(0), "one": np.array(1), "column": ints(-1, 1, 1)})


def test_what_is_computed_from_constants_alone_folds() -> None:
    nodes = [
        n("NonZero", "mask", "places"),
        n("Transpose", "places", "rows"),
        n("Constant", "", "three", value=numpy_helper.from_array(ints(1))),
        n("Squeeze", "rows three", "flat"),
        n("Gather", "x flat", "y", axis=2),
    ]
    network = held(nodes, {"mask": np.array([1, 0, 0, 1, 1, 0], np.float32)})
    assert len(list(network.body.graph.nodes)) == 4  # x, the indices, the gather, the output


def test_float64_constants_are_evaluated_in_float64() -> None:
    power = [n("Pow", "base exponents", "steps"), n("Cast", "steps", "narrow", to=1), n("Div", "x narrow", "y")]
    held(power, {"base": np.array(10000.0), "exponents": np.arange(6) / 3.0})


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
@pytest.mark.parametrize("corners", [0, 1])
def test_grid_sample(mode: str, corners: int) -> None:
    nodes = [
        n("Transpose", "x", "points", perm=[0, 2, 3, 1]),
        n("Tanh", "points", "grid"),
        n("GridSample", "x grid", "y", mode=mode, align_corners=corners, padding_mode="border"),
    ]
    held(nodes, {}, (2, 6, 6), tolerance=2e-5)


def test_neutral_constants_and_pads_of_zero_cost_nothing() -> None:
    nodes = [n("Add", "x zeros", "a"), n("Mul", "a ones", "b"), n("Pad", "b none", "c"), n("Relu", "c", "y")]
    network = held(
        nodes, {"zeros": np.zeros((4, 6), np.float32), "ones": np.ones(6, np.float32), "none": ints(*[0] * 6)}
    )
    assert len(list(network.body.graph.nodes)) == 3


@pytest.mark.parametrize("batch", [1, 2])
def test_a_fixed_batch_runs_at_any_multiple(batch: int) -> None:
    nodes = [n("Reshape", "x target", "flat"), n("MatMul", "flat w", "product"), n("Softmax", "product", "y")]
    constants = {"target": ints(batch, 24), "w": values(24, 5)}
    network = held(nodes, constants, batch=batch)
    assert network.fixed == batch
    x = torch.from_numpy(values(2 * batch, 4, 6))
    whole = torch.autograd.grad(network(x)["y"][:, 0].sum(), list(network.parameters()))
    parts = [torch.autograd.grad(network(half)["y"][:, 0].sum(), list(network.parameters())) for half in x.split(batch)]
    torch.testing.assert_close(whole[0], parts[0][0] + parts[1][0])


def test_a_size_that_is_not_affine_in_the_batch_is_refused() -> None:
    nodes = [
        n("Shape", "x", "size", start=0, end=1),
        n("Mul", "size size", "square"),
        n("Expand", "x square", "y"),
    ]
    model, _ = model_of(nodes, {}, (1,), ["y"])
    with pytest.raises(UnsupportedModelError, match="Expand"):
        convert(model)


def test_a_dynamic_axis_besides_the_batch_is_refused_with_the_remedy() -> None:
    model, _ = model_of([n("Relu", "x", "y")], {}, (3, "height"), ["y"])  # type: ignore[arg-type]
    with pytest.raises(UnsupportedModelError, match="dynamic axis") as refused:
        convert(model)
    assert "--shapes x=" in str(refused.value)


@pytest.mark.parametrize("domain", ["", "com.microsoft"])
def test_an_operator_without_a_row_is_named_with_its_node(domain: str) -> None:
    op = "NonMaxSuppression" if not domain else "FusedGelu"
    model, _ = model_of([n("Relu", "x", "r"), n(op, "r", "y", domain=domain)], {}, (4,), ["y"])
    with pytest.raises(UnsupportedModelError) as refused:
        convert(model)
    assert op in str(refused.value)
    assert f"{op}_y" in str(refused.value)
    assert "trainable_prefix" in str(refused.value)
    assert convert(model, outputs=["r"]).outputs == ("r",)


def test_unknown_names_and_nothing_at_all_are_refused() -> None:
    model, _ = model_of([n("Relu", "x", "y")], {}, (4,), ["y"])
    with pytest.raises(UsageError, match="no tensor of this name"):
        convert(model, taps=["z"])
    with pytest.raises(UsageError, match="no output or tap"):
        convert(model, outputs=[])


def test_sizes_are_fitted_on_all_batches() -> None:
    builder = Builder((2, 3, 5))
    assert builder.fit([7, 7, 7]) == 7
    assert builder.fit([5, 7, 11]) == Affine(2, 1)
    for wrong in ([4, 9, 25], [1, 1, 2]):
        with pytest.raises(NotAffine):
            builder.fit(wrong)
    assert operator.attrgetter("slope", "offset")(builder.fit([2, 3, 5])) == (1, 0)


def test_a_batch_that_a_fixed_one_does_not_divide_is_filled_up() -> None:
    model, data = model_of([n("MatMul", "x w", "y")], {"w": values(6, 5)}, (4, 6), ["y"], batch=3)
    network, session, x = convert(model), Session(data, optimize=False), values(7, 4, 6)
    expected = np.concatenate([session.run({"x": rows})["y"] for rows in (x[:3], x[3:6], x[[6, 6, 6]])])[:7]
    np.testing.assert_allclose(network(torch.from_numpy(x))["y"].detach().numpy(), expected, 1e-5, 2e-6)
