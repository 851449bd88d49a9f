"""What no pass touched leaves as it came: metadata, documentation, interfaces, odd attributes, subgraphs, functions."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_graphs import FLOAT, INT64, graph, initializer, model, node, normal, proto, run

from gpusq_onnx.errors import UnsupportedModelError
from gpusq_onnx.graph import invariants, io
from gpusq_onnx.graph.snapshot import take

X = [("x", FLOAT, ["batch", 8])]


def chain(**constants):
    return proto([node("MatMul", ["x", "w"], ["y"])], X, [("y", FLOAT, ["batch", 8])], {"w": normal(8, 8), **constants})


def through(made):
    """Loaded and written again."""
    loaded = model(made)
    invariants.check(loaded, "loading")
    return onnx.load_from_string(io.to_bytes(loaded))


def test_names_documentation_and_metadata():
    made = chain()
    made.producer_name, made.producer_version, made.domain = "torch", "2.9", "org.example"
    made.model_version, made.doc_string = 7, "the model"
    made.graph.doc_string, made.graph.name = "the graph", "main"
    made.metadata_props.add(key="classes", value="cat,dog")
    made.graph.metadata_props.add(key="g", value="1")
    made.graph.node[0].metadata_props.add(key="pkg.torch.onnx.stack_trace", value="line 1")
    made.graph.node[0].doc_string = "a node"
    made.graph.input[0].doc_string = "an input"
    made.graph.input[0].metadata_props.add(key="i", value="2")
    made.graph.initializer[0].doc_string = "a weight"
    made.graph.quantization_annotation.add(tensor_name="w")
    out = through(made)
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string", "metadata_props"):
        assert getattr(out, field) == getattr(made, field), field
    for field in ("name", "doc_string", "metadata_props", "input", "output", "quantization_annotation", "node"):
        assert getattr(out.graph, field) == getattr(made.graph, field), field
    assert out.graph.initializer[0] == made.graph.initializer[0]


def test_set_metadata_keeps_what_was_there_and_sorts_what_is_new():
    made = chain()
    made.metadata_props.add(key="z", value="old")
    loaded = model(made)
    loaded.set_metadata({"b": "2", "a": "1", "z": "new"})
    assert list(loaded.metadata.items()) == [("z", "new"), ("a", "1"), ("b", "2")]


@pytest.mark.parametrize("shape", [["batch", 8], [None, 8], [3, 8], None])
def test_interfaces_keep_their_dynamic_dimensions(shape):
    made = proto([node("Relu", ["x"], ["y"])], [("x", FLOAT, shape)], [("y", FLOAT, shape)])
    out = onnx.load_from_string(io.to_bytes(model(made)))
    assert out.graph.input == made.graph.input
    assert out.graph.output == made.graph.output
    assert model(made).inputs()[0].shape == tuple(shape or ())
    invariants.check(model(made), "loading")


def test_initializers_listed_as_inputs_are_no_inputs():
    made = chain()
    made.graph.input.append(helper.make_tensor_value_info("w", FLOAT, [8, 8]))
    loaded = model(made)
    assert [spec.name for spec in loaded.inputs()] == ["x"]
    assert onnx.load_from_string(io.to_bytes(loaded)).graph.input == made.graph.input
    invariants.check(loaded, "loading")
    loaded.graph.nodes[0].inputs[1] = type(loaded.graph.nodes[0].inputs[1])("v", normal(8, 8))
    assert [value.name for value in onnx.load_from_string(io.to_bytes(loaded)).graph.input] == ["x"], (
        "a weight that is gone is no input"
    )


def test_a_large_initializer_listed_as_an_input_stands_once_in_the_skeleton():
    made = proto(
        [node("MatMul", ["x", "w"], ["y"])], [("x", FLOAT, [1, 64])], [("y", FLOAT, None)], {"w": normal(64, 64)}
    )
    made.graph.input.append(helper.make_tensor_value_info("w", FLOAT, [64, 64]))
    assert [value.name for value in take(model(made)).skeleton().graph.input] == ["x", "w"]


def with_outer_weight(size: int):
    """An If whose branches read weights of the main graph, one of them read nowhere else."""
    weights = {"shared": normal(size, size), "lonely": normal(size, size, seed=1)}
    branches = {}
    for branch, weight in (("then_branch", "shared"), ("else_branch", "lonely")):
        own = numpy_helper.from_array(normal(size, size, seed=2), f"own_{branch}")
        inner = graph(
            [
                node("MatMul", ["x", weight], [f"h_{branch}"]),
                node("MatMul", [f"h_{branch}", own.name], [f"y_{branch}"]),
            ],
            [],
            [(f"y_{branch}", FLOAT, None)],
            {},
        )
        inner.initializer.append(own)
        inner.node[0].metadata_props.add(key="deep", value=branch)
        inner.doc_string = branch
        branches[branch] = inner
    nodes = [node("If", ["c"], ["z"], **branches), node("MatMul", ["z", "shared"], ["y"])]
    inputs = [("x", FLOAT, [3, size]), ("c", TensorProto.BOOL, [])]
    return proto(nodes, inputs, [("y", FLOAT, None)], weights)


@pytest.mark.parametrize("size", [4, 32])
@pytest.mark.parametrize("condition", [True, False])
def test_subgraphs_and_the_outer_weights_that_they_read(size: int, condition: bool):
    made = with_outer_weight(size)
    feed = {"x": normal(3, size), "c": np.array(condition)}
    out = through(made)
    assert sorted(t.name for t in out.graph.initializer) == ["lonely", "shared"]
    assert out.graph.node[0] == made.graph.node[0]
    np.testing.assert_array_equal(run(out, feed)["y"], run(made, feed)["y"])
    loaded = model(made)
    assert sorted(c.name for c in loaded.constants()) == ["lonely", "shared"]
    invariants.check(loaded, "loading")


def test_external_data_of_subgraphs_comes_in(tmp_path):
    made = with_outer_weight(16)
    for attribute in made.graph.node[0].attribute:
        tensor = attribute.g.initializer[0]
        (tmp_path / f"{tensor.name}.bin").write_bytes(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=f"{tensor.name}.bin")
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    loaded = io.load(tmp_path / "m.onnx")
    assert [p.name for p in io.data_files(loaded)] == ["own_else_branch.bin", "own_then_branch.bin"]
    feed = {"x": normal(3, 16), "c": np.array(True)}
    np.testing.assert_array_equal(run(loaded, feed)["y"], run(with_outer_weight(16), feed)["y"])


def test_a_loop_keeps_its_sequence():
    body = graph(
        [
            node("SequenceInsert", ["s", "x"], ["s2"]),
            node("Identity", ["go"], ["go2"]),
        ],
        [("i", INT64, []), ("go", TensorProto.BOOL, [])],
        [("go2", TensorProto.BOOL, [])],
        {},
    )
    body.input.append(helper.make_tensor_sequence_value_info("s", FLOAT, None))
    body.output.append(helper.make_tensor_sequence_value_info("s2", FLOAT, None))
    nodes = [
        node("SequenceEmpty", [], ["empty"]),
        node("Loop", ["n", "", "empty"], ["all"], body=body),
        node("ConcatFromSequence", ["all"], ["y"], axis=0),
    ]
    made = proto(nodes, [("x", FLOAT, [2, 3])], [("y", FLOAT, None)], {"n": np.array(3)})
    made.graph.value_info.append(helper.make_tensor_sequence_value_info("all", FLOAT, None))
    feed = {"x": normal(2, 3)}
    out = onnx.load_from_string(io.to_bytes(model(made)))
    np.testing.assert_array_equal(run(out, feed)["y"], run(made, feed)["y"])
    assert out.graph.node == made.graph.node


def test_attributes_that_graphsurgeon_does_not_know():
    odd = helper.make_node("Odd", ["x"], ["y"], domain="org.example", name="odd")
    odd.attribute.append(helper.make_attribute("plain", 1))
    odd.attribute.append(onnx.AttributeProto(name="none", type=onnx.AttributeProto.INTS))
    odd.attribute.append(helper.make_attribute("kind", helper.make_tensor_type_proto(FLOAT, [2])))
    odd.attribute.append(helper.make_attribute("tensors", [numpy_helper.from_array(normal(2), "t")]))
    odd.overload = "second"
    made = proto([odd], X, [("y", FLOAT, ["batch", 8])])
    made.opset_import.append(helper.make_opsetid("org.example", 3))
    out = onnx.load_from_string(io.to_bytes(model(made)))
    assert out.graph.node[0].overload == "second"
    assert {a.name: a for a in out.graph.node[0].attribute} == {a.name: a for a in odd.attribute}
    assert out.opset_import == made.opset_import


def test_binary_attributes_are_refused_and_not_damaged():
    odd = helper.make_node("Engine", ["x"], ["y"], domain="trt", blob=b"\xff\xfe\x00")
    made = proto([odd], X, [("y", FLOAT, ["batch", 8])])
    with pytest.raises(UnsupportedModelError, match="not UTF-8"):
        model(made)


def test_functions_leave_as_they_came():
    made = proto([helper.make_node("Twice", ["x"], ["y"], domain="local")], X, [("y", FLOAT, ["batch", 8])])
    body = [node("Constant", [], ["two"], value_float=2.0), node("Mul", ["a", "two"], ["b"])]
    made.functions.append(helper.make_function("local", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 21)]))
    made.opset_import.append(helper.make_opsetid("local", 1))
    out = through(made)
    assert out.functions == made.functions
    feed = {"x": normal(2, 8)}
    np.testing.assert_array_equal(run(out, feed)["y"], 2 * feed["x"])


KINDS = [np.float32, np.float64, np.float16, np.int8, np.uint8, np.int64, np.bool_, ml_dtypes.bfloat16]
KINDS += [ml_dtypes.float8_e4m3fn, ml_dtypes.int4, ml_dtypes.uint4]


@pytest.mark.parametrize("count", [7, 4099])
@pytest.mark.parametrize("kind", KINDS, ids=lambda k: np.dtype(k).name)
def test_every_type_and_storage(kind, count: int):
    values = (np.arange(count) % 5).astype(kind)
    for raw in (True, False):
        tensor = numpy_helper.from_array(values, "c")
        if not raw:
            tensor = helper.make_tensor("c", tensor.data_type, [count], values.astype(np.float32).tolist())
        made = proto([node("Identity", ["c"], ["y"])], [], [("y", tensor.data_type, [count])])
        made.graph.initializer.append(tensor)
        loaded = model(made)
        np.testing.assert_array_equal(initializer(loaded, "c").astype(np.float32), values.astype(np.float32))
        (constant,) = loaded.constants()
        constant.values = values[::-1].copy()
        np.testing.assert_array_equal(initializer(loaded, "c").astype(np.float32), values[::-1].astype(np.float32))


@pytest.mark.parametrize("count", [3, 1000])
def test_strings(count: int):
    labels = np.array([f"class {i}" for i in range(count)], dtype=object)
    made = proto([node("Gather", ["labels", "x"], ["y"])], [("x", INT64, [1])], [("y", TensorProto.STRING, [1])])
    made.graph.initializer.append(helper.make_tensor("labels", TensorProto.STRING, [count], labels.tolist()))
    assert onnx.load_from_string(io.to_bytes(model(made))).graph.initializer == made.graph.initializer


def test_constant_nodes_become_initializers_and_compute_the_same():
    nodes = [
        node("Constant", [], ["a"], value_float=2.0),
        node("Constant", [], ["b"], value_floats=[1.0, 2.0, 3.0]),
        node("Constant", [], ["i"], value_int=1),
        node("Constant", [], ["j"], value_ints=[3]),
        node("Constant", [], ["w"], value=numpy_helper.from_array(normal(3, 3))),
        node("Mul", ["x", "a"], ["h"]),
        node("Add", ["h", "b"], ["g"]),
        node("MatMul", ["g", "w"], ["m"]),
        node("Reshape", ["m", "j"], ["r"]),
        node("Gather", ["r", "i"], ["y"]),
    ]
    made = proto(nodes, [("x", FLOAT, [1, 3])], [("y", FLOAT, None)])
    loaded = model(made)
    assert sorted(c.name for c in loaded.constants()) == ["a", "b", "i", "j", "w"]
    feed = {"x": normal(1, 3)}
    np.testing.assert_array_equal(run(loaded, feed)["y"], run(made, feed)["y"])


def test_a_constant_node_that_is_an_output_stays():
    made = proto([node("Constant", [], ["c"], value_float=2.0), node("Relu", ["x"], ["y"])], X,
                 [("y", FLOAT, ["batch", 8]), ("c", FLOAT, [])])  # fmt: skip
    assert run(through(made), {"x": normal(1, 8)})["c"] == 2


def test_a_clone_is_the_same_model_and_knows_nothing_of_later_edits():
    made = with_outer_weight(32)
    made.metadata_props.add(key="classes", value="cat,dog")
    loaded = model(made)
    before = io.to_bytes(loaded)
    twin = loaded.clone()
    assert io.to_bytes(twin) == before
    values = {tensor.name: tensor._values for tensor in loaded.constants()}
    assert values
    assert all(tensor._values is values[tensor.name] for tensor in twin.constants())
    for tensor in list(loaded.constants()):
        tensor.values = np.zeros_like(tensor.values)
    loaded.graph.nodes.pop()
    loaded.set_metadata({"classes": "none"})
    del loaded.frame.output[:]
    assert io.to_bytes(twin) == before
