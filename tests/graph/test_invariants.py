"""Every rule catches the illegal graph that it is there for, and lets the legal one through."""

import illegal_graphs
import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto
from small_graphs import FLOAT, INT8, graph, model, node, normal, proto

from gpusq_onnx.errors import InvariantError, UnsupportedModelError
from gpusq_onnx.graph import invariants

X = [("x", FLOAT, [5, 8])]
Y = [("y", FLOAT, None)]
SCALE, ZERO = np.array(0.1, np.float32), np.array(0, np.int8)
CHANNELS = {"ws": np.full(6, 0.1, np.float32), "wz": np.zeros(6, np.int8)}


def qdq(**changes):
    """A legal QDQ Linear, with constants and attributes changed."""
    axis = changes.pop("axis", 1)
    drop_zero = changes.pop("drop_zero", False)
    constants = {"w": normal(8, 6), "s": SCALE, "z": ZERO, **CHANNELS, **changes}
    pair = ["s"] if drop_zero else ["s", "z"]
    nodes = [
        node("QuantizeLinear", ["x", *pair], ["xq"]),
        node("DequantizeLinear", ["xq", *pair], ["xd"]),
        node("QuantizeLinear", ["w", "ws", "wz"], ["wq"], axis=axis),
        node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"], axis=axis),
        node("MatMul", ["xd", "wd"], ["y"]),
    ]
    return proto(nodes, X, Y, constants)


def bias_int32():
    constants = {"b": np.zeros(8, np.int32), "s": SCALE, "z": np.array(0, np.int32)}
    return proto([node("DequantizeLinear", ["b", "s", "z"], ["d"]), node("Add", ["x", "d"], ["y"])], X, Y, constants)


def qlinear():
    constants = {"s": SCALE, "z": ZERO, "w": np.ones((8, 6), np.int8)}
    inputs = ["x", "s", "z", "w", "s", "z", "s", "z"]
    return proto([node("QLinearMatMul", inputs, ["y"])], [("x", INT8, [5, 8])], [("y", INT8, None)], constants)


def in_a_branch():
    inner = graph(
        [node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("DequantizeLinear", ["q", "s", "z"], ["d"])],
        [],
        [("d", FLOAT, None)],
        {},
    )
    other = graph([node("Identity", ["x"], ["e"])], [], [("e", FLOAT, None)], {})
    nodes = [node("If", ["c"], ["y"], then_branch=inner, else_branch=other)]
    return proto(nodes, [*X, ("c", TensorProto.BOOL, [])], Y, {"s": SCALE, "z": np.array(3, np.int8)})


def computed_scale():
    made = qdq()
    made.graph.node.insert(0, node("Abs", ["s"], ["abs"]))
    made.graph.node[1].input[1] = "abs"
    return made


HALF = {"s": np.array(1e-5, np.float16)}
ILLEGAL = {
    "zero point 3": (qdq(z=np.array(3, np.int8)), "is not zero"),
    "uint8": (qdq(z=np.array(0, np.uint8)), "is UINT8"),
    "int16": (qdq(z=np.array(0, np.int16)), "is INT16"),
    "no zero point": (qdq(drop_zero=True), "no constant zero point"),
    "zero point of another shape": (qdq(z=np.zeros(1, np.int8)), "differ in shape"),
    "scale of zero": (qdq(s=np.array(0, np.float32)), "not a positive number"),
    "negative scale": (qdq(s=np.array(-0.1, np.float32)), "not a positive number"),
    "NaN scale": (qdq(s=np.array(np.nan, np.float32)), "not a positive number"),
    "subnormal half scale": (qdq(**HALF), "not a positive number"),
    "computed scale": (computed_scale(), "is computed"),
    "scales of shape [1, N]": (qdq(ws=np.full((1, 6), 0.1, np.float32), wz=np.zeros((1, 6), np.int8)), "is 1-D"),
    "scales for the wrong axis": (qdq(axis=0), "6 scales for axis 0"),
    "scales for no axis": (qdq(axis=5), "6 scales for axis 5"),
    "scales a channel of an activation": (
        qdq(s=np.full(8, 0.1, np.float32), z=np.zeros(8, np.int8)),
        "8 scales for the activation 'x'",
    ),
    "INT32 bias": (bias_int32(), "INT32"),
    "QLinearMatMul": (qlinear(), "(QLinearMatMul) computes on integers"),
    "zero point 3 in a branch": (in_a_branch(), "is not zero"),
}


@pytest.mark.parametrize("case", list(ILLEGAL))
def test_illegal_quantisation_is_named(case: str):
    made, says = ILLEGAL[case]
    found = invariants.violations(model(made))
    assert any(says in text for text in found), found


def fp8():
    kind = ml_dtypes.float8_e4m3fn
    return qdq(z=np.array(0, kind), wz=np.zeros(6, kind))


def int4_blocks():
    constants = {
        "w": np.zeros((128, 6), ml_dtypes.int4),
        "s": np.full((2, 6), 0.1, np.float32),
        "z": np.zeros((2, 6), ml_dtypes.int4),
    }
    nodes = [node("DequantizeLinear", ["w", "s", "z"], ["d"], axis=0, block_size=64), node("MatMul", ["x", "d"], ["y"])]
    return proto(nodes, [("x", FLOAT, [5, 128])], Y, constants)


LEGAL = {
    "INT8 QDQ": qdq(),
    "axis from the end": qdq(axis=-1),
    "FP8": fp8(),
    "INT4 blocks": int4_blocks(),
    "smallest half scale": illegal_graphs.in_fp16(s=np.array(2.0**-14, np.float16)),
    "INT4 in blocks of 64": illegal_graphs.int4_in_blocks_of_64(),
    "one scale in a list": qdq(s=np.full(1, 0.1, np.float32), z=np.zeros(1, np.int8)),
}


@pytest.mark.parametrize("case", list(LEGAL))
def test_legal_quantisation_passes(case: str):
    assert invariants.violations(model(LEGAL[case])) == []


def linear():
    return model(proto([node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["y"])], X, Y, {"w": normal(8, 6)}))


def broken_name(loaded):
    loaded.graph.nodes[0].inputs[0] = gs.Variable("lost", np.float32)


def broken_order(loaded):
    loaded.graph.nodes[:] = loaded.graph.nodes[::-1]


def broken_producers(loaded):
    node = loaded.graph.nodes[0]
    loaded.graph.nodes.insert(1, gs.Node("Abs", "abs", {}, [node.inputs[0]], [gs.Variable("h", np.float32)]))


def broken_constants(loaded):
    node = loaded.graph.nodes[0]
    out = gs.Variable("h2", np.float32)
    loaded.graph.nodes.insert(1, gs.Node("Add", "add", {}, [node.outputs[0], gs.Constant("w", normal(6))], [out]))
    loaded.graph.nodes[2].inputs[0] = out


def broken_interface(loaded):
    loaded.graph.outputs[0].name = "z"


def lost_input(loaded):
    loaded.graph.inputs.pop()


def broken_operator(loaded):
    loaded.graph.nodes[1].op = "Relux"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (broken_name, "nothing produces it"),
        (broken_order, "before it is made"),
        (broken_producers, "two producers"),
        (broken_constants, "two tensors are named 'w'"),
        (broken_interface, "became"),
        (lost_input, "inputs"),
        (broken_operator, "Relux"),
    ],
)
def test_broken_graphs_are_named(damage, says: str):
    loaded = linear()
    invariants.check(loaded, "nothing")
    damage(loaded)
    with pytest.raises(InvariantError, match=says) as caught:
        invariants.check(loaded, "damage")
    assert caught.value.exit_code == 4
    assert "after damage" in str(caught.value)


@pytest.mark.parametrize(("op", "opset"), [("MatMulInteger", 20), ("QuantizeLinear", 20)])
def test_a_model_that_was_quantised_elsewhere_is_called_that(op: str, opset: int):
    quantised = {
        "MatMulInteger": [
            onnx.helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
            onnx.helper.make_node("MatMulInteger", ["q", "w"], ["p"]),
            onnx.helper.make_node("Cast", ["p"], ["y"], to=FLOAT),
        ],
        "QuantizeLinear": [
            onnx.helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            onnx.helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
        ],
    }
    constants = {"w": np.ones((8, 6), np.int8), "scale": np.array(0.1, np.float32), "zero": np.array(3, np.uint8)}
    made = model(proto(quantised[op], X, Y, constants, opset=opset))
    with pytest.raises(UnsupportedModelError, match="quantised already, in a form") as caught:
        invariants.require(made)
    assert op in str(caught.value.details["found"])
