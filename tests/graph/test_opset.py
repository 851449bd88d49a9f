"""Raising the opset: nothing that a model computes may change, and what cannot be raised is refused."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from small_graphs import FLOAT, INT64, graph, model, node, normal, proto, rng, run

from gpusq_onnx.errors import UnsupportedModelError
from gpusq_onnx.graph import invariants
from gpusq_onnx.graph.opset import raise_opset

IMAGE = [("x", FLOAT, [2, 4, 6, 8])]
ANY = [("y", FLOAT, None)]
REDUCTIONS = ("Max", "Min", "Mean", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")


def raised(made):
    copy = onnx.ModelProto()
    copy.CopyFrom(made)
    raise_opset(copy)
    onnx.shape_inference.infer_shapes(copy, check_type=True, strict_mode=True)
    invariants.check(model(copy), "raising")
    return copy


def same(made, feed, opset=20):
    after = raised(made)
    assert [(o.domain, o.version) for o in after.opset_import] == [("", opset)]
    assert after.ir_version >= 10
    before = run(made, feed)
    for name, value in run(after, feed).items():
        np.testing.assert_array_equal(value, before[name])
    for name, value in run(model(made), feed).items():
        np.testing.assert_array_equal(value, before[name])
    return after


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions_take_their_axes_as_an_input(name: str, keep: int):
    made = proto([node(f"Reduce{name}", ["x"], ["y"], axes=[1, -1], keepdims=keep)], IMAGE, ANY, opset=13)
    after = same(made, {"x": np.abs(normal(2, 4, 6, 8)) + 0.1})
    assert len(after.graph.node[0].input) == 2


def test_a_reduction_over_everything_and_a_reduce_sum_stay():
    nodes = [node("ReduceMean", ["x"], ["m"]), node("ReduceSum", ["x", "a"], ["s"]), node("Add", ["m", "s"], ["y"])]
    made = proto(nodes, IMAGE, ANY, {"a": np.array([2])}, opset=14)
    assert [len(n.input) for n in same(made, {"x": normal(2, 4, 6, 8)}).graph.node] == [1, 2, 2]


def test_an_axes_name_that_is_taken():
    nodes = [node("ReduceMean", ["x"], ["y"], axes=[1]), node("Identity", ["y_axes"], ["z"])]
    made = proto(nodes, IMAGE, [*ANY, ("z", FLOAT, None)], {"y_axes": normal(3)}, opset=13)
    same(made, {"x": normal(2, 4, 6, 8)})


@pytest.mark.parametrize("sizes", [False, True])
def test_split_says_how_many_parts(sizes: bool):
    constants = {"s": np.array([1, 3])} if sizes else {}
    made = proto(
        [node("Split", ["x", *constants], ["a", "b"], axis=1)],
        IMAGE,
        [("a", FLOAT, None), ("b", FLOAT, None)],
        constants,
        opset=17,
    )
    after = same(made, {"x": normal(2, 4, 6, 8)})
    assert [a.name for a in after.graph.node[0].attribute] == (["axis"] if sizes else ["axis", "num_outputs"])


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic", None])
def test_grid_sample_modes(mode: str | None):
    attributes = {} if mode is None else {"mode": mode}
    grid = rng(1).uniform(-1.2, 1.2, (2, 5, 7, 2)).astype(np.float32)
    made = proto([node("GridSample", ["x", "g"], ["y"], **attributes)], IMAGE, ANY, {"g": grid}, opset=16)
    same(made, {"x": normal(2, 4, 6, 8)})


def test_roi_align_keeps_its_old_pixel_centres():
    constants = {"r": np.array([[0.3, 0.7, 5.2, 4.1]], np.float32), "b": np.array([1])}
    attributes = {"output_height": 2, "output_width": 2, "spatial_scale": 1.0, "sampling_ratio": 2}
    made = proto([node("RoiAlign", ["x", "r", "b"], ["y"], **attributes)], IMAGE, ANY, constants, opset=13)
    same(made, {"x": normal(2, 4, 6, 8)})
    made = proto([node("RoiAlign", ["x", "r", "b"], ["y"], **attributes)], IMAGE, ANY, constants, opset=16)
    same(made, {"x": normal(2, 4, 6, 8)})


def branch(name: str, axes: list[int]):
    return graph(
        [node("ReduceMean", ["x"], [f"{name}_y"], axes=axes, keepdims=0)], [], [(f"{name}_y", FLOAT, None)], {}
    )


def shadowing(inner: str):
    """A branch that makes a tensor and reads an outer one whose name is that of the tensor's axes, once raised."""
    body = [
        node("ReduceMean", ["x"], [inner], axes=[1], keepdims=1),
        node("Gather", ["x", "s_axes"], ["g"], axis=1),
        node("Sub", ["g", inner], ["t"]),
    ]
    other = graph([node("Identity", ["x"], ["e"])], [], [("e", FLOAT, None)], {})
    return node("If", ["c"], ["y"], then_branch=graph(body, [], [("t", FLOAT, None)], {}), else_branch=other)


@pytest.mark.parametrize("outer", ["made", "stored", "fed"])
def test_new_names_in_a_branch_hide_no_outer_tensor(outer: str):
    nodes, inputs, stored = [shadowing("s")], [*IMAGE, ("c", TensorProto.BOOL, [])], {"two": np.array([2])}
    feed = {"x": normal(2, 4, 6, 8), "c": np.array(True)}
    if outer == "made":
        nodes.insert(0, node("Identity", ["two"], ["s_axes"]))
    elif outer == "stored":
        stored["s_axes"] = stored.pop("two")
    else:
        inputs, feed["s_axes"] = [*inputs, ("s_axes", INT64, [1])], stored.pop("two")
    same(proto(nodes, inputs, ANY, stored, opset=13), feed)


def test_a_new_name_is_no_input_s():
    nodes = [
        node("ReduceMean", ["x"], ["s"], axes=[1], keepdims=1),
        node("Gather", ["x", "s_axes"], ["g"], axis=1),
        node("Add", ["g", "s"], ["y"]),
    ]
    made = proto(nodes, [*IMAGE, ("s_axes", INT64, [1])], ANY, opset=13)
    same(made, {"x": normal(2, 4, 6, 8), "s_axes": np.array([2])})


def test_if_and_loop_bodies_are_raised():
    made = proto(
        [node("If", ["c"], ["h"], then_branch=branch("t", [1, 2]), else_branch=branch("e", [2, 3]))],
        [*IMAGE, ("c", TensorProto.BOOL, [])],
        [("h", FLOAT, None)],
        opset=13,
    )
    for condition in (True, False):
        same(made, {"x": normal(2, 4, 6, 8), "c": np.array(condition)})
    body = graph(
        [
            node("ReduceMax", ["v"], ["m"], axes=[0]),
            node("Split", ["v"], ["p", "q"], axis=0),
            node("Add", ["v", "m"], ["v2"]),
            node("Identity", ["go"], ["go2"]),
            node("Add", ["p", "q"], ["o"]),
        ],
        [("i", INT64, []), ("go", TensorProto.BOOL, []), ("v", FLOAT, [4])],
        [("go2", TensorProto.BOOL, []), ("v2", FLOAT, [4]), ("o", FLOAT, None)],
        {},
    )
    nodes = [node("Loop", ["n", "", "v0"], ["y", "scan"], body=body)]
    made = proto(nodes, [("v0", FLOAT, [4])], [*ANY, ("scan", FLOAT, None)], {"n": np.array(3)}, opset=15)
    same(made, {"v0": normal(4)})


@pytest.mark.parametrize("opset", range(13, 26))
def test_every_opset_from_13_to_25_is_taken(opset: int):
    nodes = [node("Softmax", ["x"], ["s"], axis=-1), node("Relu", ["s"], ["y"])]
    made = proto(nodes, IMAGE, ANY, opset=opset)
    assert raised(made).opset_import[0].version == max(20, opset)


@pytest.mark.parametrize("opset", [1, 10, 26, 30])
def test_others_are_refused_with_the_way_out(opset: int):
    made = proto([node("Relu", ["x"], ["y"])], IMAGE, ANY, opset=opset)
    with pytest.raises(UnsupportedModelError, match=f"opset {opset} is not supported") as caught:
        raise_opset(made)
    assert "opset_version=20" in str(caught.value)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("op", "attributes", "opset", "since"),
    [
        ("DFT", {"axis": 1}, 17, 20),
        ("GroupNormalization", {"num_groups": 2}, 18, 21),
        ("GroupNormalization", {"num_groups": 2}, 20, 21),
    ],
)
def test_operators_that_are_not_converted_are_refused_by_name(op: str, attributes: dict, opset: int, since: int):
    made = proto([node(op, ["x", "s", "s"], ["y"], **attributes)], IMAGE, ANY, opset=opset)
    with pytest.raises(UnsupportedModelError, match=f"{op} changed its meaning with opset {since}"):
        raise_opset(made)


def test_other_domains_keep_their_version():
    made = proto([helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")], IMAGE, ANY, opset=17)
    made.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    raise_opset(made)
    assert {o.domain: o.version for o in made.opset_import} == {"": 20, "com.microsoft": 1}
