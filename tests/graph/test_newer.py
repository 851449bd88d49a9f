"""Quantised graphs that must keep a newer opset: the same numbers, in forms that a default session loads."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from small_graphs import FLOAT, Array, model, node, normal, proto

from gpusq_onnx.errors import UnsupportedModelError
from gpusq_onnx.graph import invariants, io, label
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.rewrites.newer import settle_newer
from gpusq_onnx.graph.shapes import infer_shapes
from gpusq_onnx.runtime.ort import Session
from gpusq_onnx.runtime.tensorrt.parser import parser_verdict

X = [("x", FLOAT, [2, 8, 32])]
SWISH = node("Swish", ["a"], ["y"])  # no opset below 24 has it
Y = [("y", FLOAT, None)]
CONSTANTS: dict[str, Array] = {
    "s": np.array(0.05, np.float32),
    "z": np.array(0, np.int8),
    "w": normal(32, 16) / 4,
    "b": normal(16, seed=1),
    "heads": np.array([2, 8, 4, 4]),
    "first": np.array([0]),
    "four": np.array([4]),
    "axis": np.array([1]),
}


def pair(x: str, name: str) -> list[onnx.NodeProto]:
    return [
        node("QuantizeLinear", [x, "s", "z"], [f"{name}_q"]),
        node("DequantizeLinear", [f"{name}_q", "s", "z"], [name]),
    ]


LINEAR = [*pair("x", "d"), node("MatMul", ["d", "w"], ["m"]), node("Add", ["m", "b"], ["a0"])]
HEADS = [*pair("a0", "o"), node("Reshape", ["o", "heads"], ["r"]), node("Transpose", ["r"], ["t"], perm=[0, 2, 1, 3])]
CASES: dict[str, tuple[Sequence[onnx.NodeProto], int]] = {
    "a bias": ([*LINEAR, node("Relu", ["a0"], ["a"])], 1),
    "layout in a row": ([*LINEAR, *HEADS, node("Relu", ["t"], ["a"])], 2),
    "layout that parts": (
        [
            *(*LINEAR, *HEADS),
            node("Slice", ["t", "first", "four", "axis"], ["u"]),
            node("Relu", ["u"], ["u2"]),
            node("Relu", ["t"], ["t2"]),
            node("Add", ["t2", "u2"], ["a"]),
        ],
        2,
    ),
    "layout beside another reader": (
        [*LINEAR, *HEADS, node("ReduceMean", ["o"], ["mean"], keepdims=0), node("Add", ["t", "mean"], ["a"])],
        2,
    ),
}


def made_of(nodes: Sequence[onnx.NodeProto]) -> Model:
    made = model(proto([*nodes, SWISH], X, Y, CONSTANTS, opset=24))
    label.settle(made)
    assert made.opset == 24
    return made


@pytest.mark.parametrize("case", CASES)
def test_the_default_session_loads_what_it_refused_and_nothing_else_changes(case: str) -> None:
    nodes, changes = CASES[case]
    made = made_of(nodes)
    feed = {"x": normal(2, 8, 32, seed=2)}
    wanted = Session(io.to_bytes(made), optimize=False).run(feed)["y"]
    with pytest.raises(UnsupportedModelError, match="y_zero_point"):
        Session(io.to_bytes(made))
    assert settle_newer(made, infer_shapes(made)[0]) == changes
    assert settle_newer(made, infer_shapes(made)[0]) == 0
    invariants.check(made, "settling")
    after = io.to_bytes(made)
    np.testing.assert_array_equal(Session(after, optimize=False).run(feed)["y"], wanted)
    np.testing.assert_allclose(Session(after, precise=True).run(feed)["y"], wanted, atol=0.06)


def test_layout_that_gives_an_output_stays() -> None:
    made = model(proto([*LINEAR, *pair("a0", "o"), node("Reshape", ["o", "heads"], ["y"])], X, Y, CONSTANTS, opset=24))
    assert made.opset == 24
    assert settle_newer(made, infer_shapes(made)[0]) == 1
    assert [n.op for n in made.graph.nodes][-2:] == ["DequantizeLinear", "Reshape"]


def test_a_product_of_one_axis_keeps_it() -> None:
    nodes = [*LINEAR, node("Relu", ["a0"], ["a"]), SWISH]
    made = model(proto(nodes, [("x", FLOAT, [32])], Y, CONSTANTS, opset=24))
    wanted = Session(io.to_bytes(made), optimize=False).run({"x": normal(32)})["y"]
    assert settle_newer(made, infer_shapes(made)[0]) == 1
    invariants.check(made, "settling")
    found = Session(io.to_bytes(made), precise=True).run({"x": normal(32)})["y"]
    assert found.shape == wanted.shape == (16,)
    np.testing.assert_allclose(found, wanted, atol=0.06)


def test_an_older_label_needs_none_of_it() -> None:
    made = model(proto([*LINEAR, *HEADS, node("Relu", ["t"], ["y"])], X, Y, CONSTANTS, opset=24))
    label.settle(made)
    before = io.to_bytes(made)
    assert settle_newer(made, infer_shapes(made)[0]) == 0
    assert io.to_bytes(made) == before
    Session(before)


def test_a_parser_takes_codes_through_layout(harness: Path, tmp_path: Path) -> None:
    """With Relu for Swish, which the parser at hand does not know, and at the label of then."""
    nodes = [*CASES["layout in a row"][0][:-1], node("Relu", ["t"], ["y"])]
    made = model(proto(nodes, X, Y, CONSTANTS, opset=23))
    assert settle_newer(made, infer_shapes(made)[0]) == 2
    io.save(made, tmp_path / "m.onnx")
    verdict = parser_verdict(tmp_path / "m.onnx", harness=harness, build=True)
    assert verdict.ok, verdict.errors
