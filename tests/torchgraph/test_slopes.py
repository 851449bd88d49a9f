"""Slopes of a classifier whose inputs have no batch in common: a feed is one run, however long its arrays are."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("torch", reason="needs the extra `train`")

from gpusq_onnx.graph.model import from_proto
from gpusq_onnx.torchgraph.slopes import Slopes


@pytest.mark.parametrize("rows", [1, "n"])
def test_a_feed_is_not_cut_to_rows_of_its_first_input(rows: int | str) -> None:
    """Images against three texts, each of which counts."""
    nodes = [
        helper.make_node("MatMul", ["images", "a"], ["i"]),
        helper.make_node("MatMul", ["texts", "b"], ["t"]),
        helper.make_node("Transpose", ["t"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["i", "turned"], ["y"]),
    ]
    shapes = {"images": [rows, 4], "texts": [3, 4]}
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    rng = np.random.default_rng(0)
    stored = [numpy_helper.from_array(rng.standard_normal((4, 4)).astype(np.float32), name) for name in "ab"]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, 3])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, stored)
    proto: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    slopes = Slopes(from_proto(proto, None), ["y"], {"i": -1, "t": -1}, seed=0)
    count = 2 if rows == "n" else 1
    feed = {name: rng.standard_normal((size, 4)).astype(np.float32) for name, size in (("images", count), ("texts", 3))}
    found = slopes.of(feed)
    assert {name: x.shape for name, x in found.items()} == {"i": (count,), "t": (3,)}
    assert all((x > 0).all() for x in found.values())
