"""Forms that end or stop onnxruntime: after reading they are gone, and what remains computes the same."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_graphs import FLOAT, INT64, graph, model, node, normal, proto, run

from gpusq_onnx.errors import UnsupportedModelError
from gpusq_onnx.graph import io
from gpusq_onnx.graph.structure import analyse
from gpusq_onnx.runtime.ort import Session

X = [("x", FLOAT, [2, 4, 8])]
Y = [("y", FLOAT, [2, 4, 8])]


def loaded(made: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    onnx.save(made, folder / "m.onnx")
    return onnx.load_from_string(io.to_bytes(io.load(folder / "m.onnx")))


def test_inputs_and_outputs_that_are_left_out_at_the_end_are_cut(tmp_path: Path):
    """The LayerNormalization ends onnxruntime 1.31's process, so nothing here runs the graph before it is read."""
    norm = node("LayerNormalization", ["x", "s", ""], ["n", "", ""])
    clips = [node("Clip", ["n", "", "m"], ["k"]), node("Clip", ["k", "low", ""], ["t"])]
    inner = graph(clips, [], [("t", FLOAT, None)], {})
    other = graph([node("Squeeze", ["n", ""], ["e"])], [], [("e", FLOAT, None)], {})
    choose = node("If", ["c"], ["y"], then_branch=inner, else_branch=other)
    constants = {"s": normal(8), "m": np.array(0.5, np.float32), "low": np.array(-0.5, np.float32), "c": np.array(True)}
    made = loaded(proto([norm, choose], X, Y, constants), tmp_path)
    assert (list(made.graph.node[0].input), list(made.graph.node[0].output)) == (["x", "s"], ["n"])
    branches = {a.name: [list(n.input) for n in a.g.node] for a in made.graph.node[1].attribute}
    assert branches == {"then_branch": [["n", "", "m"], ["k", "low"]], "else_branch": [["n"]]}
    x = normal(2, 4, 8, seed=1)
    centred = x - x.mean(-1, keepdims=True)
    wanted = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-5) * constants["s"]
    np.testing.assert_allclose(run(made, {"x": x})["y"], np.clip(wanted, -0.5, 0.5), atol=1e-5)


def calling(opset: int = 21) -> onnx.ModelProto:
    """A call of a local function that calls another one, whose weight is a Constant node, and that reads one."""
    made = proto([helper.make_node("Mine", ["x", "s"], ["y"], domain="local")], X, Y, {"s": normal(8)})
    held = numpy_helper.from_array(normal(8, 8, seed=3))
    inner = [node("Constant", [], ["w"], value=held), node("MatMul", ["a", "w"], ["b"])]
    body = [
        node("LayerNormalization", ["a", "b", ""], ["n"]),
        helper.make_node("Linear", ["n"], ["c"], domain="local"),
    ]
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("local", 1)]
    made.functions.append(helper.make_function("local", "Linear", ["a"], ["b"], inner, opsets))
    made.functions.append(helper.make_function("local", "Mine", ["a", "b"], ["c"], body, opsets))
    made.opset_import.append(opsets[1])
    return made


def test_calls_of_local_functions_become_their_nodes(tmp_path: Path):
    after = loaded(calling(), tmp_path)
    assert not after.functions
    assert [(n.op_type, len(n.input)) for n in after.graph.node] == [("LayerNormalization", 2), ("MatMul", 2)]
    (site,) = analyse(model(after)).sites
    np.testing.assert_array_equal(site.read(), normal(8, 8, seed=3).T)
    run(after, {"x": normal(2, 4, 8)})


@pytest.mark.parametrize("opset", [17, 22])
def test_functions_of_another_opset_are_inlined_as_well(opset: int, tmp_path: Path):
    after = loaded(calling(opset), tmp_path)
    assert not after.functions
    assert [n.op_type for n in after.graph.node] == ["LayerNormalization", "MatMul"]


def local(opset: int, *body: onnx.NodeProto, attributes: Sequence[onnx.AttributeProto] = ()) -> onnx.ModelProto:
    """A model of this opset that calls a local function of this body, a -> b."""
    made = proto([helper.make_node("Mine", ["x"], ["y"], domain="local")], X, Y, opset=opset)
    opsets = [helper.make_opsetid("", opset)]
    made.functions.append(
        helper.make_function("local", "Mine", ["a"], ["b"], body, opsets, attribute_protos=attributes)
    )
    made.opset_import.append(helper.make_opsetid("local", 1))
    return made


@pytest.mark.parametrize(
    ("opset", "body"),
    [
        (12, [node("Softmax", ["a"], ["b"], axis=1)]),
        (12, [node("Unsqueeze", ["a"], ["u"], axes=[0]), node("Squeeze", ["u"], ["b"], axes=[0])]),
        (12, [node("ReduceSum", ["a"], ["b"], axes=[1])]),
        (17, [node("ReduceMean", ["a"], ["b"], axes=[1])]),
        (17, [node("Split", ["a"], ["s", "t"], axis=2), node("Concat", ["t", "s"], ["b"], axis=2)]),
    ],
)
def test_a_function_of_an_older_opset_keeps_its_meaning(opset: int, body: list[onnx.NodeProto], tmp_path: Path):
    made = local(opset, *body)
    feed = {"x": normal(2, 4, 8)}
    np.testing.assert_allclose(run(loaded(made, tmp_path), feed)["y"], run(made, feed)["y"], rtol=1e-6)


def test_a_call_without_an_attribute_has_the_functions_default(tmp_path: Path):
    leaky = node("LeakyRelu", ["a"], ["b"])
    leaky.attribute.add(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
    made = local(20, leaky, attributes=[helper.make_attribute("slope", 0.75)])
    made.graph.node.append(helper.make_node("Mine", ["y"], ["z"], domain="local", slope=0.5))
    made.graph.output.append(helper.make_tensor_value_info("z", FLOAT, None))
    after = loaded(made, tmp_path)
    assert [helper.get_node_attr_value(n, "alpha") for n in after.graph.node] == [0.75, 0.5]
    feed = {"x": normal(2, 4, 8)}
    for name, value in run(made, feed).items():
        np.testing.assert_array_equal(run(after, feed)[name], value)


@pytest.mark.parametrize("places", [np.array([3, 9, 60]), np.array([[0, 3], [1, 1], [7, 4]])], ids=["linear", "coo"])
def test_sparse_weights_are_filled(places: np.ndarray, tmp_path: Path):
    values = normal(3)
    made = proto([node("MatMul", ["x", "w"], ["y"])], X, Y)
    made.graph.sparse_initializer.append(
        helper.make_sparse_tensor(numpy_helper.from_array(values, "w"), numpy_helper.from_array(places, "at"), [8, 8])
    )
    after = loaded(made, tmp_path)
    dense = np.zeros((8, 8), np.float32)
    dense[[0, 1, 7], [3, 1, 4]] = values
    (site,) = analyse(model(after)).sites
    np.testing.assert_array_equal(site.read(), dense.T)
    made.graph.sparse_initializer[0].indices.CopyFrom(numpy_helper.from_array(np.array([3, 9, 64]), "at"))
    with pytest.raises(UnsupportedModelError, match="contradicts itself"):
        loaded(made, tmp_path)


def test_nodes_of_one_name_get_their_own(tmp_path: Path):
    names = ["n", "n", "n_2", "", "", "n"]
    nodes = [helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"], name=name) for i, name in enumerate(names)]
    made = proto([*nodes, node("Relu", ["t6"], ["y"])], [("t0", FLOAT, [2, 4, 8])], Y)
    after = loaded(made, tmp_path)
    assert [n.name for n in after.graph.node[:6]] == ["n", "n_3", "n_2", "", "", "n_4"]
    run(after, {"t0": normal(2, 4, 8)})


def declared(made: onnx.ModelProto) -> dict[str, tuple[int, list[int | str | None]]]:
    return {
        v.name: (
            v.type.tensor_type.elem_type,
            [d.dim_value or d.dim_param or None for d in v.type.tensor_type.shape.dim],
        )
        for v in made.graph.value_info
    }


def test_declarations_of_inner_tensors_stay_where_inference_agrees(tmp_path: Path):
    nodes = [node("Relu", ["x" if i == 0 else f"t{i - 1}"], [f"t{i}"]) for i in range(6)]
    inputs, outputs = [("x", FLOAT, ["batch", 4, 8])], [("y", FLOAT, ["batch", 4, 8])]
    made = proto([*nodes, node("Relu", ["t5"], ["y"])], inputs, outputs)
    for name, kind, shape in (
        ("t0", FLOAT, ["batch", 4, 8]),  # right
        ("t1", FLOAT, ["batch", 32]),  # another rank
        ("t2", INT64, ["batch", 4, 8]),  # another type, which onnxruntime refuses
        ("t3", FLOAT, ["batch", 4, 9]),  # another size
        ("t4", FLOAT, [2, 4, 8]),  # the batch that was traced
        ("t9", FLOAT, [1]),  # of no tensor
    ):
        made.graph.value_info.append(helper.make_tensor_value_info(name, kind, shape))
    after = loaded(made, tmp_path)
    whole = (FLOAT, ["batch", 4, 8])
    assert declared(after) == dict.fromkeys(["t0", "t1", "t2", "t3", "t4"], whole)
    Session(after.SerializeToString()).run({"x": normal(3, 4, 8)})


def test_what_inference_cannot_know_stays_as_declared(tmp_path: Path):
    nodes = [
        helper.make_node("FusedMatMul", ["x", "w"], ["m"], domain="com.microsoft", name="f", transB=1),
        node("NonZero", ["m"], ["i"]),
        node("Reshape", ["m", "to"], ["r"]),
        node("Relu", ["r"], ["y"]),
    ]
    made = proto(nodes, X, [*Y, ("i", INT64, [3, "n"])], {"w": normal(8, 8), "to": np.array([2, 4, 8])})
    made.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    for name, shape in (("m", [2, 4, 8]), ("r", [2, 32])):
        made.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    after = loaded(made, tmp_path)
    assert declared(after) == {"m": (FLOAT, [2, 4, 8])}
    Session(after.SerializeToString()).run({"x": normal(2, 4, 8)})


def test_what_another_domain_makes_has_the_type_of_the_products_after_it(tmp_path: Path):
    """Declared as float32, as a converter to float16 leaves it beside a fused operator; no runtime looks."""
    nodes = [
        helper.make_node("Strange", ["x"], ["u"], domain="mine"),
        node("Reshape", ["u", "to"], ["r"]),
        node("MatMul", ["r", "w"], ["h"]),
        node("Transpose", ["h"], ["y"], perm=[1, 0]),
    ]
    half = {"w": normal(8, 8).astype(np.float16), "to": np.array([-1, 8])}
    made = proto(nodes, [("x", TensorProto.FLOAT16, [2, 4, 8])], [("y", TensorProto.FLOAT16, None)], half)
    made.graph.value_info.extend(helper.make_tensor_value_info(name, FLOAT, None) for name in ("u", "r", "h"))
    made.opset_import.append(helper.make_opsetid("mine", 1))
    onnx.save(made, tmp_path / "m.onnx")
    types = analyse(io.load(tmp_path / "m.onnx")).types
    assert {types[name] for name in ("u", "r", "h", "y")} == {np.dtype(np.float16)}


def test_initializers_are_no_inputs(tmp_path: Path):
    """Exports with keep_initializers_as_inputs, and all below IR 4."""
    made = proto([node("MatMul", ["x", "w"], ["y"])], X, Y, {"w": normal(8, 8)})
    made.graph.input.append(helper.make_tensor_value_info("w", FLOAT, [8, 8]))
    found = loaded(made, tmp_path)
    assert [value.name for value in found.graph.input] == ["x"]
    x = normal(2, 4, 8, seed=1)
    np.testing.assert_array_equal(run(found, {"x": x})["y"], run(made, {"x": x})["y"])


@pytest.mark.parametrize("also", [False, True])
def test_the_default_domain_has_one_spelling(also: bool, tmp_path: Path):
    """In local functions and branches too, and where a model imports both spellings."""
    made = calling()
    sides = [graph([node(op, ["y"], [op])], [], [(op, FLOAT, None)], {}) for op in ("Neg", "Exp")]
    made.graph.node.append(node("If", ["c"], ["z"], then_branch=sides[0], else_branch=sides[1]))
    made.graph.initializer.append(numpy_helper.from_array(np.array(True), "c"))
    made.graph.output[0].name = "z"
    wanted = run(made, {"x": normal(2, 4, 8)})
    bodies = (made.graph, *made.functions, *(a.g for a in made.graph.node[-1].attribute))
    for one in (one for body in bodies for one in body.node if not one.domain):
        one.domain = "ai.onnx"
    for owner in (made, *made.functions):
        owner.opset_import[0].domain = "ai.onnx"
    if also:
        made.opset_import.append(helper.make_opsetid("", 21))
    read = loaded(made, tmp_path)
    assert [(entry.domain, entry.version) for entry in read.opset_import if entry.domain != "local"] == [("", 21)]
    onnx.checker.check_model(read)
    np.testing.assert_array_equal(run(read, {"x": normal(2, 4, 8)})["z"], wanted["z"])


def test_constants_that_graphsurgeon_has_not_read_yet_are_written():
    """As they come out of a branch that moved into the graph."""
    made = model(proto([node("Mul", ["x", "s"], ["y"])], X, Y, {"s": np.array(2, np.float32)}))
    (constant,) = made.constants()
    constant._values = gs.ir.tensor.LazyValues(numpy_helper.from_array(np.array(3, np.float32), "s"))
    x = normal(2, 4, 8)
    np.testing.assert_array_equal(run(onnx.load_from_string(io.to_bytes(made)), {"x": x})["y"], 3 * x)
