"""Which outputs depend on no choice: judged by the graph, not by the kind of model."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from small_graphs import FLOAT, INT64, graph, model, node, normal, proto

from gpusq_onnx.graph.continuity import smooth_outputs
from gpusq_onnx.graph.shapes import infer_shapes

K = {"k": np.array([3]), "i": np.array([0, 2]), "s": np.array(0.1, np.float32), "z": np.array(0, np.int8)}
PLACES = {"z1": np.array([0]), "o1": np.array([1]), "yes": np.array(True)}
WHERE = {"zero": np.array(0, np.float32), "one": np.array(1, np.float32)}
CHOOSE = {
    "then_branch": graph([node("Relu", ["x"], ["t"])], [], [("t", FLOAT, None)], {}),
    "else_branch": graph([node("Neg", ["x"], ["e"])], [], [("e", FLOAT, None)], {}),
}
ROUNDS = graph([node("Round", ["x"], ["t"])], [], [("t", FLOAT, None)], {})
READS = graph([node("Relu", ["r"], ["t"])], [], [("t", FLOAT, None)], {})
CASES: dict[str, tuple[list[onnx.NodeProto], set[str]]] = {
    "arithmetic": ([node("Exp", ["x"], ["a"]), node("Relu", ["x"], ["b"])], {"a", "b"}),
    "sorted scores are smooth, their order is not": (
        [node("Exp", ["x"], ["e"]), node("TopK", ["e", "k"], ["a", "b"])],
        {"a"},
    ),
    "what is gathered by the order": (
        [
            node("Exp", ["x"], ["e"]),
            node("TopK", ["e", "k"], ["v", "o"]),
            node("GatherElements", ["x", "o"], ["a"]),
            node("Relu", ["v"], ["b"]),
        ],
        {"b"},
    ),
    "constants choose nothing": ([node("Gather", ["x", "i"], ["a"], axis=1), node("Relu", ["x"], ["b"])], {"a", "b"}),
    "a comparison": (
        [
            node("Exp", ["x"], ["e"]),
            node("Greater", ["e", "one"], ["c"]),
            node("Where", ["c", "x", "zero"], ["a"]),
            node("Relu", ["x"], ["b"]),
        ],
        {"b"},
    ),
    "a comparison of what was fed": (
        [
            node("Concat", ["x", "x"], ["e"], axis=1),
            node("Greater", ["e", "zero"], ["c"]),
            node("Where", ["c", "e", "zero"], ["w"]),
            node("Exp", ["w"], ["a"]),
            node("Relu", ["x"], ["b"]),
        ],
        {"a", "b"},
    ),
    "a mask for NaN": (
        [node("IsNaN", ["x"], ["c"]), node("Where", ["c", "zero", "x"], ["a"]), node("Relu", ["x"], ["b"])],
        {"a", "b"},
    ),
    "quantisation": (
        [
            node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            node("DequantizeLinear", ["q", "s", "z"], ["a"]),
            node("Shape", ["x"], ["d"]),
            node("Reshape", ["x", "d"], ["b"]),
        ],
        {"a", "b"},
    ),
    "rounding and chance": ([node("Round", ["x"], ["a"]), node("RandomNormalLike", ["x"], ["b"])], set()),
    "a branch by what was fed, of constants and arithmetic": (
        [
            node("Slice", ["x", "z1", "o1"], ["f"]),
            node("Cast", ["f"], ["w"], to=TensorProto.BOOL),
            node("If", ["w"], ["a"], **CHOOSE),
            node("Relu", ["x"], ["b"]),
        ],
        {"a", "b"},
    ),
    "a branch by what was fed, in which something is chosen": (
        [
            node("Cast", ["x"], ["w"], to=TensorProto.BOOL),
            node("If", ["w"], ["a"], then_branch=ROUNDS, else_branch=CHOOSE["else_branch"]),
            node("Relu", ["x"], ["b"]),
        ],
        {"b"},
    ),
    "a branch that reads what was chosen": (
        [
            node("Round", ["x"], ["r"]),
            node("If", ["yes"], ["a"], then_branch=READS, else_branch=CHOOSE["else_branch"]),
            node("Relu", ["x"], ["b"]),
        ],
        {"b"},
    ),
    "a branch by the data": (
        [
            node("ReduceMean", ["x"], ["m"], keepdims=0),
            node("Greater", ["m", "zero"], ["c"]),
            node("If", ["c"], ["a"], **CHOOSE),
            node("Relu", ["x"], ["b"]),
        ],
        {"b"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_outputs_that_depend_on_no_choice(case: str) -> None:
    nodes, smooth = CASES[case]
    kind = INT64 if case.startswith("sorted") else FLOAT
    made = model(proto(nodes, [("x", FLOAT, [2, 8])], [("a", FLOAT, None), ("b", kind, None)], K | PLACES | WHERE))
    assert smooth_outputs(made, infer_shapes(made)[1]) == smooth


def test_integers_that_the_caller_feeds_are_no_choice() -> None:
    nodes = [node("Gather", ["table", "ids"], ["a"]), node("Relu", ["a"], ["b"])]
    inputs, outputs = [("ids", INT64, [2, 5])], [("a", FLOAT, None), ("b", FLOAT, None)]
    made = model(proto(nodes, inputs, outputs, {"table": normal(20, 4)}))
    assert smooth_outputs(made, infer_shapes(made)[1]) == {"a", "b"}
