"""Opsets 11 and 12: what they wrote otherwise computes the same once it is raised, and reads like opset 13."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from gpusq_onnx.errors import UnsupportedModelError
from gpusq_onnx.graph import invariants
from gpusq_onnx.graph.opset import raise_opset
from tests.graph.small_graphs import FLOAT, INT64, graph, model, node, normal, proto, run

X = [("x", FLOAT, [2, 4, 6, 8])]
Y = [("y", FLOAT, None)]
FEED = {"x": normal(2, 4, 6, 8)}


def same(made: onnx.ModelProto) -> onnx.ModelProto:
    """The model raised, once it was found to compute what it did."""
    after = onnx.ModelProto()
    after.CopyFrom(made)
    raise_opset(after)
    assert [(o.domain, o.version) for o in after.opset_import] == [("", 20)]
    onnx.shape_inference.infer_shapes(after, check_type=True, strict_mode=True)
    invariants.check(model(after), "raising")
    before = run(made, FEED)
    for name, value in run(after, FEED).items():
        np.testing.assert_allclose(value, before[name], rtol=1e-5, atol=1e-6)
    return after


@pytest.mark.parametrize("opset", [11, 12])
def test_axes_and_sizes_become_inputs(opset: int) -> None:
    nodes = [
        node("Unsqueeze", ["x"], ["u"], axes=[0, 3]),
        node("Squeeze", ["u"], ["s"], axes=[3]),
        node("Squeeze", ["s"], ["t"]),
        node("Split", ["t"], ["a", "b"], axis=1, split=[1, 3]),
        node("ReduceSum", ["a"], ["r"], axes=[1], keepdims=1),
        node("ReduceMean", ["b"], ["m"], axes=[1], keepdims=1),
        node("Add", ["r", "m"], ["y"]),
    ]
    after = same(proto(nodes, X, Y, opset=opset))
    assert [len(n.input) for n in after.graph.node] == [2, 2, 1, 2, 2, 2, 2]


@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize(("axis", "operators"), [(-1, 1), (3, 1), (1, 4), (None, 4), (-2, 4)])
def test_softmax_was_over_all_axes_from_one_on(kind: str, axis: int | None, operators: int) -> None:
    given = {} if axis is None else {"axis": axis}
    after = same(proto([node(kind, ["x"], ["y"], **given)], X, Y, opset=12))
    assert len(after.graph.node) == operators


def test_a_rank_that_only_later_opsets_know_keeps_attention_whole() -> None:
    """As torch writes a reshape of what it measures: the rank is found once all else is raised."""
    shape = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "zero"], ["n"]),
        node("Unsqueeze", ["n"], ["m"], axes=[0]),
    ]
    nodes = [
        *shape,
        node("Concat", ["m", "rest"], ["to"], axis=0),
        node("Reshape", ["x", "to"], ["r"]),
        node("Softmax", ["r"], ["y"], axis=2),
    ]
    constants = {"zero": np.array(0), "rest": np.array([24, 8])}
    after = same(proto(nodes, X, Y, constants, opset=11))
    assert after.graph.node[-1].op_type == "Softmax"


def test_softmax_of_an_unknown_rank() -> None:
    nodes = [node("Reshape", ["x", "to"], ["r"]), node("Softmax", ["r"], ["y"], axis=2)]
    made = proto(nodes, [*X, ("to", INT64, ["rank"])], Y, opset=11)
    after = onnx.ModelProto()
    after.CopyFrom(made)
    raise_opset(after)
    feed = {**FEED, "to": np.array([2, 4, 48])}
    np.testing.assert_allclose(run(after, feed)["y"], run(made, feed)["y"], rtol=1e-6)


def test_dropout_forgets_its_ratio() -> None:
    after = same(proto([node("Dropout", ["x"], ["y"], ratio=0.3)], X, Y, opset=11))
    assert not after.graph.node[0].attribute


@pytest.mark.parametrize("stored", [True, False])
def test_resize_without_empty_inputs(stored: bool) -> None:
    empty = np.zeros(0, np.float32)
    constants = {"sizes": np.array([2, 4, 12, 16])}
    before = []
    if stored:
        constants |= {"roi": empty, "scales": empty}
    else:
        before = [node("Constant", [], [n], value=helper.make_tensor(n, FLOAT, [0], [])) for n in ("roi", "scales")]
    resize = node("Resize", ["x", "roi", "scales", "sizes"], ["y"], mode="linear")
    after = same(proto([*before, resize], X, Y, constants, opset=11))
    assert list(after.graph.node[-1].input) == ["x", "", "", "sizes"]


def test_a_mode_that_was_withdrawn_is_refused() -> None:
    resize = node("Resize", ["x", "", "s"], ["y"], coordinate_transformation_mode="tf_half_pixel_for_nn")
    made = proto([resize], X, Y, {"s": np.array([1, 1, 2, 2], np.float32)}, opset=12)
    with pytest.raises(UnsupportedModelError, match="tf_half_pixel_for_nn"):
        raise_opset(made)


def test_branches_are_raised_too() -> None:
    inner = graph([node("Softmax", ["x"], ["t"], axis=2)], [], [("t", FLOAT, None)], {})
    other = graph([node("Squeeze", ["w"], ["e"], axes=[0])], [], [("e", FLOAT, None)], {})
    choose = node("If", ["c"], ["y"], then_branch=inner, else_branch=other)
    made = proto([choose], X, Y, {"c": np.array(True), "w": normal(1, 2, 4, 6, 8)}, opset=11)
    after = same(made)
    branches = {a.name: [n.op_type for n in a.g.node] for a in after.graph.node[0].attribute}
    assert branches["then_branch"] == ["Flatten", "Softmax", "Shape", "Reshape"]
    assert TensorProto.INT64 in {t.data_type for a in after.graph.node[0].attribute for t in a.g.initializer}


def test_new_names_are_of_the_whole_model() -> None:
    inner = [
        node("Softmax", ["x"], ["s"], axis=1),
        node("Squeeze", ["u"], ["q"], axes=[0]),
        node("Gather", ["x", "q_axes"], ["g"], axis=1),
        node("Mul", ["g", "s_flat"], ["h"]),
        node("Add", ["h", "s"], ["a"]),
        node("Add", ["a", "q"], ["t"]),
    ]
    sides = (
        graph(inner, [], [("t", FLOAT, None)], {}),
        graph([node("Neg", ["x"], ["e"])], [], [("e", FLOAT, None)], {}),
    )
    nodes = [
        node("Unsqueeze", ["x"], ["u"], axes=[0]),
        node("Relu", ["x"], ["s_flat"]),
        node("If", ["c"], ["y"], then_branch=sides[0], else_branch=sides[1]),
    ]
    constants = {"c": np.array(True), "q_axes": np.array([3, 2, 1, 0])}
    same(proto(nodes, X, Y, constants, opset=12))
