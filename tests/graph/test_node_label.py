"""How sentences name a node."""

from __future__ import annotations

import onnx_graphsurgeon as gs
import pytest
from onnx import helper

from gpusq_onnx.graph.wording import node_label


@pytest.mark.parametrize(
    ("name", "outputs", "expected"),
    [
        ("/blocks.0/fc1/MatMul", ["y"], "node '/blocks.0/fc1/MatMul' (MatMul)"),
        ("", ["", "y"], "the MatMul node that makes 'y'"),
        ("", [], "a MatMul node without outputs"),
    ],
)
def test_protobuf_and_graphsurgeon_alike(name: str, outputs: list[str], expected: str) -> None:
    tensors = [gs.Variable(output) for output in outputs]
    assert node_label(helper.make_node("MatMul", ["a", "b"], outputs, name)) == expected
    assert node_label(gs.Node("MatMul", name, outputs=tensors)) == expected
