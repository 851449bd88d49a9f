"""The dense model beside a walk: the targets that weights come with, and those that come with none."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from gpusq_onnx.calibration.walk import Walk, observable
from gpusq_onnx.data.opening import open_source
from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.source import InputSpec, Source
from gpusq_onnx.graph import io
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.qdq.rescale import own_bias
from gpusq_onnx.graph.sites import find_sites

RNG = np.random.default_rng(0)


def build(
    folder: Path, nodes: list[onnx.NodeProto], shape: tuple[int, ...], **given: np.ndarray
) -> tuple[Model, Source]:
    """A model of `x`, any number of it, to `y`, and six samples."""
    dims = ["n", *shape]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, d) for name, d in (("x", dims), ("y", None))]
    constants = [numpy_helper.from_array(value, name) for name, value in given.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), folder / "m.onnx")
    np.save(folder / "x.npy", RNG.standard_normal((6, *shape)).astype(np.float32))
    spec = InputSpec("x", np.dtype(np.float32), ("n", *shape))
    return io.load(folder / "m.onnx"), open_source(DataOptions(path=folder / "x.npy"), [spec])


def matrix(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def walked(model: Model, source: Source) -> dict[str, np.ndarray | None]:
    """The mean that each weight's outputs miss, where the first weight's outputs become half of what they were."""
    found: dict[str, np.ndarray | None] = {}
    sites = [site for site in find_sites(model) if observable(site)]
    with Walk(model, sites, source, dense=True) as walk:
        for site, _, target in walk:
            found[site.name] = None if target is None else target.mean
            if len(found) == 1:
                site.write(site.read() / 2)
                bias = own_bias(site)
                if bias is not None:
                    bias.values = bias.values / 2
    return found


def test_inputs_and_the_stream_are_compared_with_the_dense_model(tmp_path: Path) -> None:
    """a = x A + b; h = a + x; y = relu(h) B + c + h."""
    a, b, c, bias = matrix(4, 4), matrix(4, 4), matrix(4), matrix(4)
    nodes = [
        helper.make_node("MatMul", ["x", "A"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["a"]),
        helper.make_node("Add", ["a", "x"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "B"], ["n"]),
        helper.make_node("Add", ["n", "c"], ["o"]),
        helper.make_node("Add", ["h", "o"], ["y"]),
    ]
    model, source = build(tmp_path, nodes, (3, 4), A=a, B=b, b=bias, c=c)
    x = np.load(tmp_path / "x.npy")
    found = walked(model, source)
    dense, halved = (share * (x @ a + bias) + x for share in (1, 0.5))
    missing = (np.maximum(dense, 0) - np.maximum(halved, 0)) @ b + (dense - halved)
    np.testing.assert_array_equal(found["A"], 0)
    np.testing.assert_allclose(found["B"], missing.mean(axis=(0, 1)), rtol=1e-3, atol=1e-5)


def test_a_convolution_and_a_stream_of_maps(tmp_path: Path) -> None:
    """m = conv(x, A); y = conv(m, B) + m, B over three positions each way."""
    a, b = matrix(4, 4, 1, 1), matrix(4, 4, 3, 3)
    nodes = [
        helper.make_node("Conv", ["x", "A"], ["m"]),
        helper.make_node("Conv", ["m", "B"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c", "m"], ["y"]),
    ]
    model, source = build(tmp_path, nodes, (4, 5, 6), A=a, B=b)
    x = np.load(tmp_path / "x.npy")
    found = walked(model, source)
    m = np.einsum("nchw,oc->nohw", x, a[..., 0, 0]) / 2  # dense less halved
    padded = np.pad(m, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    missing = np.einsum("nchwij,ocij->nohw", windows, b) + m
    np.testing.assert_allclose(found["B"], missing.mean(axis=(0, 2, 3)), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("broadcast", [False, True])
def test_a_stream_that_is_made_later_or_broadcast_is_left_out(tmp_path: Path, broadcast: bool) -> None:
    """y = m B + s, s made after the product, or of one row."""
    a, b = matrix(4, 4), matrix(4, 4)
    stream = [
        helper.make_node("ReduceMean", ["m", "axis"], ["s"], keepdims=1) if broadcast else
        helper.make_node("Sigmoid", ["m"], ["s"])
    ]  # fmt: skip
    product = [helper.make_node("MatMul", ["m", "B"], ["o"])]
    nodes = [
        helper.make_node("MatMul", ["x", "A"], ["m"]),
        *(stream + product if broadcast else product + stream),
        helper.make_node("Add", ["o", "s"], ["y"]),
    ]
    model, source = build(tmp_path, nodes, (3, 4), A=a, B=b, axis=np.array([1]))
    x = np.load(tmp_path / "x.npy")
    found = walked(model, source)
    np.testing.assert_allclose(found["B"], (x @ a / 2 @ b).mean(axis=(0, 1)), rtol=1e-3, atol=1e-5)


def test_no_target_after_a_choice_and_for_a_tied_weight(tmp_path: Path) -> None:
    """The best two rows of m go on; B multiplies twice."""
    nodes = [
        helper.make_node("MatMul", ["x", "A"], ["m"]),
        helper.make_node("TopK", ["m", "two"], ["best", "places"], axis=1),
        helper.make_node("MatMul", ["best", "C"], ["c"]),
        helper.make_node("MatMul", ["m", "B"], ["o"]),
        helper.make_node("MatMul", ["o", "B"], ["p"]),
        helper.make_node("MatMul", ["m", "D"], ["d"]),
        helper.make_node("ReduceSum", ["c", "axis"], ["s"], keepdims=1),
        helper.make_node("Add", ["p", "s"], ["q"]),
        helper.make_node("Add", ["q", "d"], ["y"]),
    ]
    given = {name: matrix(4, 4) for name in "ABCD"}
    model, source = build(tmp_path, nodes, (3, 4), **given, two=np.array([2]), axis=np.array([1]))
    found = walked(model, source)
    assert {name for name, mean in found.items() if mean is None} == {"B", "C"}
