"""LayerNorms in parts: an FP32 island between two Casts, or one node where they are whole."""

import numpy as np
import onnx
import pytest
from half_graphs import casts, halved, in_half, reasons
from onnx import helper, numpy_helper
from small_graphs import FLOAT, model, node, normal, proto, run

from gpusq_onnx.graph import io
from gpusq_onnx.graph.fp16.rewrite import halve
from gpusq_onnx.graph.norms import fuse, layer_norms, norm_outputs
from gpusq_onnx.graph.structure import analyse
from gpusq_onnx.runtime.ort import Session

X = [("x", FLOAT, ["n", 8])]
Y = [("y", FLOAT, None)]


def norm(eps: float = 1e-6, square: str = "Pow") -> onnx.ModelProto:
    """A LayerNorm as exporters below opset 17 write it, between two Linears."""
    squared = ["d", "two"] if square == "Pow" else ["d", "d"]
    nodes = [
        node("MatMul", ["x", "w"], ["h"]),
        node("ReduceMean", ["h", "axes"], ["m"]),
        node("Sub", ["h", "m"], ["d"]),
        node(square, squared, ["p"]),
        node("ReduceMean", ["p", "axes"], ["v"]),
        node("Add", ["v", "eps"], ["e"]),
        node("Sqrt", ["e"], ["s"]),
        node("Div", ["d", "s"], ["q"]),
        node("Mul", ["q", "gamma"], ["g"]),
        node("Add", ["g", "beta"], ["z"]),
        node("MatMul", ["z", "w2"], ["y"]),
    ]
    constants = {"w": 300 * normal(8, 8), "w2": normal(8, 6, seed=1), "gamma": normal(8), "beta": normal(8, seed=2)}
    more = {"axes": np.array([-1]), "eps": np.array(eps, np.float32), "two": np.array(2, np.float32)}
    return proto(nodes, X, Y, constants | (more if square == "Pow" else {k: v for k, v in more.items() if k != "two"}))


@pytest.mark.parametrize("square", ["Pow", "Mul"])
def test_a_layernorm_in_parts_stays_in_fp32_between_two_casts(square: str) -> None:
    made, x = norm(square=square), normal(4, 8)
    loaded, _ = halved(made)
    assert set(reasons(made)) == {"ReduceMean_m", "Sub_d", f"{square}_p", "ReduceMean_v", "Add_e", "Sqrt_s", "Div_q"}
    assert casts(loaded) == [("x", "x_fp16"), ("h", "h_fp32"), ("q", "q_fp16"), ("y_fp16", "y")]
    wanted = run(made, {"x": x})["y"]
    np.testing.assert_allclose(run(loaded, {"x": x})["y"], wanted, atol=0.02)
    np.testing.assert_allclose(in_half(loaded, x), wanted, atol=0.02)
    naive = model(made)
    halve(naive, analyse(naive).types, set())
    assert not np.allclose(in_half(naive, x), wanted, atol=0.5), "the squares overflow without the island"


@pytest.mark.parametrize("square", ["Pow", "Mul"])
def test_a_whole_layernorm_in_parts_is_one_node(square: str) -> None:
    made, x = norm(eps=1e-3, square=square), normal(4, 8)
    loaded = model(made)
    ((parts,), _) = layer_norms(loaded, analyse(loaded).shapes)
    assert (parts.x.name, parts.gamma.name, parts.beta.name, parts.axes) == ("h", "gamma", "beta", 1)
    assert parts.epsilon == pytest.approx(1e-3)
    fuse(loaded, parts)
    assert [n.op for n in loaded.graph.nodes] == ["MatMul", "LayerNormalization", "MatMul"]
    wanted = run(made, {"x": x})["y"]
    np.testing.assert_allclose(run(loaded, {"x": x})["y"], wanted, rtol=1e-4, atol=1e-4)
    half, _ = halved(loaded)
    np.testing.assert_allclose(Session(io.to_bytes(half)).run({"x": x})["y"], wanted, atol=0.02)


@pytest.mark.parametrize("shared", [["gamma"], ["gamma", "beta", "two", "axes"]])
def test_what_the_exporter_shares_through_identity_is_a_constant(shared: list[str]) -> None:
    made, x = norm(), normal(4, 8)
    for part in made.graph.node:
        part.input[:] = [f"{name}_again" if name in shared else name for name in part.input]
    for name in shared:
        made.graph.node.insert(0, node("Identity", [name], [f"{name}_again"]))
    loaded = model(made)
    assert norm_outputs(loaded) == ["z"]
    ((parts,), _) = layer_norms(loaded, analyse(loaded).shapes)
    fuse(loaded, parts)
    assert [n.op for n in loaded.graph.nodes] == ["MatMul", "LayerNormalization", "MatMul"]
    np.testing.assert_allclose(run(loaded, {"x": x})["y"], run(made, {"x": x})["y"], rtol=1e-4, atol=1e-4)


def without(made: onnx.ModelProto, change: str) -> onnx.ModelProto:
    """`norm` with something that is not a LayerNorm's."""
    nodes = {n.name: n for n in made.graph.node}
    if change == "another reader":
        made.graph.output.append(helper.make_tensor_value_info("v", FLOAT, None))
    elif change == "gamma of data":
        nodes["Mul_g"].input[1] = "h"
    elif change == "another mean":
        nodes["ReduceMean_m"].input[0] = "x"
    elif change == "other axes":
        made.graph.initializer.append(numpy_helper.from_array(np.array([0]), "batch"))
        nodes["ReduceMean_v"].input[1] = "batch"
    elif change == "a cube":
        made.graph.initializer.append(numpy_helper.from_array(np.float32(3), "three"))
        nodes["Pow_p"].input[1] = "three"
    elif change == "the inverse":
        nodes["Div_q"].input[:] = ["s", "d"]
    elif change == "one gamma":
        made.graph.initializer.append(numpy_helper.from_array(np.float32([2]), "one"))
        nodes["Mul_g"].input[1] = "one"
    return made


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("another reader", "'v' is read elsewhere"),
        ("gamma of data", "epsilon, the factor or what is added is no constant"),
        ("another mean", "the mean is of another tensor"),
        ("other axes", "the means are not over the same trailing axes"),
        ("a cube", None),
        ("the inverse", "what is divided is not what is squared"),
        ("one gamma", "the constants do not fit the axes"),
    ],
)
def test_what_is_no_layernorm_is_left_alone(change: str, reason: str | None) -> None:
    loaded = model(without(norm(), change))
    found, refused = layer_norms(loaded, analyse(loaded).shapes)
    assert (found, set(refused.values())) == ([], {reason} if reason else set())


FORMS = {
    "a quotient": [node("Sqrt", ["e"], ["s"]), node("Div", ["h", "s"], ["q"])],
    "a reciprocal": [node("Sqrt", ["e"], ["s"]), node("Reciprocal", ["s"], ["r"]), node("Mul", ["h", "r"], ["q"])],
    "one by the root": [node("Sqrt", ["e"], ["s"]), node("Div", ["one", "s"], ["r"]), node("Mul", ["h", "r"], ["q"])],
}


@pytest.mark.parametrize("form", FORMS)
def test_an_rms_norm_in_parts_ends_after_its_factor(form: str) -> None:
    nodes = [
        node("Mul", ["x", "x"], ["p"]),
        node("ReduceMean", ["p", "axes"], ["v"]),
        node("Add", ["v", "eps"], ["e"]),
        node("Identity", ["x"], ["h"]),
        *FORMS[form],
        node("Mul", ["q", "gamma"], ["g"]),
        node("MatMul", ["g", "w"], ["y"]),
    ]
    numbers = {name: np.array(value, np.float32) for name, value in (("eps", 1e-6), ("one", 1))}
    made = model(proto(nodes, X, Y, {"axes": np.array([-1]), "gamma": normal(8), "w": normal(8, 8), **numbers}))
    assert norm_outputs(made) == ["g"]
    assert set(layer_norms(made, analyse(made).shapes)[1].values()) == {"what is squared is no difference from a mean"}
