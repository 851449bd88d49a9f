"""The independent counter of products and of their INT8 MACs, on graphs whose numbers are known by hand."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tools.zoo.count import Product, count


def _counted(
    tmp_path: Path, nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], shape: list[int | str]
) -> list[Product]:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    products = count(path).products
    assert list(tmp_path.iterdir()) == [path], "the counter leaves no file"
    return products


def _ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    ("op", "attributes", "weight", "shape", "expected"),
    [
        ("MatMul", {}, (6, 4), [1, 5, 6], (4, 6, 5 * 6 * 4)),
        ("Gemm", {"transB": 1}, (4, 6), [5, 6], (4, 6, 5 * 6 * 4)),
        ("Gemm", {"transA": 1}, (6, 4), [6, 5], (4, 6, 5 * 6 * 4)),
        ("Conv", {"group": 2}, (4, 3, 1, 1), [1, 6, 2, 2], (2, 3, 4 * 4 * 3)),
        ("ConvTranspose", {"strides": [2, 2]}, (6, 4, 2, 2), [1, 6, 3, 3], (16, 6, 9 * 6 * 16)),
        ("Einsum", {"equation": "abc,cde->abde"}, (6, 2, 4), [1, 5, 6], (8, 6, 5 * 6 * 8)),
        ("Einsum", {"equation": "...c,cd->...d"}, (6, 4), [1, 5, 6], (4, 6, 5 * 6 * 4)),
    ],
)
def test_sides_and_macs(
    op: str,
    attributes: dict[str, object],
    weight: tuple[int, ...],
    shape: list[int | str],
    expected: tuple[int, int, int],
    tmp_path: Path,
) -> None:
    """Each operator's [out, k] and MACs; the first dimension of an input is 1 where it is dynamic."""
    node = helper.make_node(op, ["x", "w"], ["y"], "n", **attributes)
    dims: list[int | str] = ["batch", *shape[1:]] if shape[0] == 1 else shape
    (product,) = _counted(tmp_path, [node], {"w": _ones(*weight)}, dims)
    assert (product.out, product.k, product.macs) == expected
    assert not product.int8


def test_a_constant_first_operand(tmp_path: Path) -> None:
    """W @ x has its outputs on the rows of W."""
    (product,) = _counted(tmp_path, [helper.make_node("MatMul", ["w", "x"], ["y"])], {"w": _ones(4, 6)}, [1, 6, 5])
    assert (product.out, product.k, product.macs) == (4, 6, 5 * 6 * 4)


def test_computed_weights_count_and_products_of_activations_do_not(tmp_path: Path) -> None:
    """A weight is what no input reaches, initializer or not."""
    nodes = [
        helper.make_node("Mul", ["w", "w"], ["square"]),
        helper.make_node("MatMul", ["x", "square"], ["h"], "linear"),
        helper.make_node("MatMul", ["h", "h"], ["y"], "attention"),
    ]
    assert [p.node for p in _counted(tmp_path, nodes, {"w": _ones(6, 6)}, [1, 6, 6])] == ["linear"]


@pytest.mark.parametrize(("zero", "both"), [(np.int8, True), (np.int8, False), (np.uint8, True)])
def test_int8_needs_both_operands_and_the_signed_type(zero: type, both: bool, tmp_path: Path) -> None:
    """Through a Transpose of the weight: INT8 only where both operands read an INT8 DequantizeLinear."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"]),
        helper.make_node("Transpose", ["wd"], ["wt"], perm=[1, 0]),
        helper.make_node("MatMul", ["xd" if both else "x", "wt"], ["y"]),
    ]
    weights = {"w": np.ones((4, 6), zero), "s": np.array(0.1, np.float32), "z": np.array(0, zero)}
    (product,) = _counted(tmp_path, nodes, weights, [1, 5, 6])
    assert product.int8 is (zero is np.int8 and both)


def test_a_dynamic_shape_is_asked_for(tmp_path: Path) -> None:
    """Only the batch is assumed."""
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    with pytest.raises(ValueError, match="input x"):
        _counted(tmp_path, [node], {"w": _ones(6, 4)}, [1, "tokens", 6])
