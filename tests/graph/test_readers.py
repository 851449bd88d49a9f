"""Who reads a tensor's numbers through layout: walks that rewriting passes and rules share."""

import numpy as np
from onnx import NodeProto
from small_graphs import FLOAT, INT8, INT64, model, node, proto

from gpusq_onnx.graph.dataflow import maker_through, readers_through
from gpusq_onnx.graph.fp16.policy import masked
from gpusq_onnx.graph.operators import MOVES
from gpusq_onnx.graph.qdq import placement

DEPTH = 40


def rolled() -> list[NodeProto]:
    """x [2, 8], rolled DEPTH times as exporters write it: two Slices and a Concat; two to the power of DEPTH paths."""
    nodes = []
    for index in range(DEPTH):
        x = "x" if index == 0 else f"x{index}"
        nodes += [
            node("Slice", [x, "one", "end", "one"], [f"tail{index}"]),
            node("Slice", [x, "zero", "one", "one"], [f"head{index}"]),
            node("Concat", [f"tail{index}", f"head{index}"], [f"x{index + 1}"], axis=1),
        ]
    return nodes


def test_readers_of_numbers_are_found_through_layout_once_each_and_not_those_of_shapes() -> None:
    constants = {name: np.array([value], np.int64) for name, value in (("zero", 0), ("one", 1), ("end", 8))}
    nodes = [*rolled(), node("Relu", [f"x{DEPTH}"], ["y"]), node("Shape", ["x1"], ["shape"])]
    made = model(proto(nodes, [("x", FLOAT, [2, 8])], [("y", FLOAT, None), ("shape", INT64, None)], constants))
    assert [reader.op for reader in readers_through(made.graph.inputs[0], MOVES)] == ["Relu"]
    relu = next(n for n in made.graph.nodes if n.op == "Relu")
    assert maker_through(relu.inputs[0], MOVES) is None
    assert maker_through(relu.outputs[0], MOVES) is relu


def test_logits_under_a_mask_may_have_their_shape_read() -> None:
    constants = {"mask": np.array([0, -1e9, 0, 0], np.float32)}
    nodes = [
        node("Add", ["x", "mask"], ["logits"]),
        node("Shape", ["logits"], ["shape"]),
        node("Reshape", ["logits", "shape"], ["again"]),
        node("Softmax", ["again"], ["y"]),
    ]
    made = model(proto(nodes, [("x", FLOAT, [2, 4])], [("y", FLOAT, None)], constants))
    assert masked(made.graph.nodes) == {"logits", "again"}
    nodes.append(node("Identity", ["logits"], ["given"]))
    made = model(proto(nodes, [("x", FLOAT, [2, 4])], [("y", FLOAT, None), ("given", FLOAT, None)], constants))
    assert masked(made.graph.nodes) == set()  # the caller gets the logits


def test_the_caller_may_get_codes_through_layout() -> None:
    constants = {"s": np.float32(0.1), "z": np.int8(0), "flat": np.array([6], np.int64)}
    nodes = [node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("Reshape", ["q", "flat"], ["y"])]
    made = model(proto(nodes, [("x", FLOAT, [2, 3])], [("y", INT8, [6])], constants))
    assert list(placement.pairs(made)) == []
