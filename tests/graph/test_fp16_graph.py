"""Which nodes stay in FP32 and where Casts go, on small graphs; the numbers against float32 in onnxruntime."""

from collections import Counter

import numpy as np
import onnx
import pytest
from half_graphs import casts, halved, reasons, types
from onnx import TensorProto, helper
from small_graphs import FLOAT, HALF, INT8, INT64, graph, initializer, model, node, normal, proto, run

from gpusq_onnx.graph import io
from gpusq_onnx.graph.fp16.policy import kept_single
from gpusq_onnx.graph.fp16.rewrite import halve
from gpusq_onnx.graph.structure import analyse
from gpusq_onnx.runtime.ort import Session

X = [("x", FLOAT, ["n", 8])]
Y = [("y", FLOAT, None)]


def test_a_linear_gets_two_casts_at_the_border() -> None:
    made = proto(
        [node("MatMul", ["x", "w"], ["h"]), node("Add", ["h", "b"], ["y"])], X, Y, {"w": normal(8, 6), "b": normal(6)}
    )
    loaded, done = halved(made)
    assert casts(loaded) == [("x", "x_fp16"), ("y_fp16", "y")]
    assert done.casts == ["x to float16", "y_fp16 to float32"]
    assert {initializer(loaded, name).dtype for name in "wb"} == {np.dtype(np.float16)}
    x = normal(3, 8)
    np.testing.assert_allclose(run(loaded, {"x": x})["y"], run(made, {"x": x})["y"], atol=0.02)


def test_the_border_itself_may_become_fp16() -> None:
    loaded, done = halved(proto([node("MatMul", ["x", "w"], ["y"])], X, Y, {"w": normal(8, 6)}), io16=True)
    assert done.casts == []
    assert [(i.name, i.dtype) for i in (*loaded.inputs(), *loaded.outputs())] == [("x", np.float16), ("y", np.float16)]
    assert run(loaded, {"x": normal(3, 8, dtype=np.float16)})["y"].dtype == np.float16


def test_fp32_output_under_an_fp16_border_is_cast() -> None:
    loaded, _ = halved(proto([node("Exp", ["x"], ["y"])], X, Y), io16=True)
    assert casts(loaded) == [("x", "x_fp32"), ("y_fp32", "y")]


def test_fused_layernorm_and_softmax_compute_in_fp16() -> None:
    nodes = [
        node("LayerNormalization", ["x", "gamma", "beta"], ["n"], axis=-1, epsilon=1e-12),
        node("Softmax", ["n"], ["s"], axis=-1),
        node("Gelu", ["s"], ["y"]),
    ]
    made = proto(nodes, X, Y, {"gamma": normal(8), "beta": normal(8, seed=1)})
    assert reasons(made) == {}
    x = 1000 * normal(4, 8)
    np.testing.assert_allclose(run(halved(made)[0], {"x": x})["y"], run(made, {"x": x})["y"], atol=2e-3)


def test_a_layernorm_that_asks_for_fp16_inside_stays_in_fp32() -> None:
    nodes = [node("LayerNormalization", ["x", "gamma"], ["y"], stash_type=TensorProto.BFLOAT16)]
    assert "stash_type" in reasons(proto(nodes, X, Y, {"gamma": normal(8)}))["LayerNormalization_y"]


QDQ = {"s": np.array(0.01, np.float32), "z": np.array(0, np.int8), "w": normal(8, 6)}
CHANNELS = {"ws": np.linspace(0.01, 0.02, 6, dtype=np.float32), "wz": np.zeros(6, np.int8)}


def qdq(**changes: np.ndarray) -> onnx.ModelProto:
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        node("QuantizeLinear", ["w", "ws", "wz"], ["wq"], axis=1),
        node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"], axis=1),
        node("MatMul", ["xd", "wd"], ["y"]),
    ]
    return proto(nodes, X, Y, {**QDQ, **CHANNELS, **changes})


def test_scales_decide_what_a_quantised_product_gives() -> None:
    made, x = qdq(), normal(4, 8)
    loaded, done = halved(made)
    found = types(loaded)
    assert {found[name] for name in ("s", "ws", "w", "xd", "wd", "y_fp16")} == {"float16"}
    assert (found["xq"], found["z"], found["wz"]) == ("int8", "int8", "int8")
    assert done.clamped == []
    np.testing.assert_allclose(run(loaded, {"x": x})["y"], run(made, {"x": x})["y"], atol=0.05)


def test_a_scale_too_small_for_fp16_is_raised_and_codes_follow() -> None:
    codes = np.random.default_rng(0).integers(-127, 128, (8, 6)).astype(np.int8)
    codes[::2] = 0
    nodes = [node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=1), node("MatMul", ["x", "wd"], ["y"])]
    made = proto(nodes, X, Y, {"w": codes, "ws": np.float32([1e-5, 1e-3, 0.1, 1, 2e-5, 0.5]), "wz": CHANNELS["wz"]})
    loaded, done = halved(made)
    assert done.clamped == ["ws"]
    assert initializer(loaded, "ws")[0] == np.float16(2.0**-14)
    assert not np.any(initializer(loaded, "w")[::2])
    x = normal(4, 8)
    want, found = run(made, {"x": x})["y"], run(loaded, {"x": x})["y"]
    np.testing.assert_allclose(found, want, atol=0.02 * np.abs(want).max(axis=0).min() + 2e-3 * np.abs(want).max())
    np.testing.assert_allclose(found[:, 0], want[:, 0], atol=1e-3)


def test_a_product_near_overflow_keeps_its_scales_in_fp32() -> None:
    made = qdq()
    loaded, _ = halved(made, flagged=("y",))
    found = types(loaded)
    assert (found["xd"], found["wd"], found["y"]) == ("float32", "float32", "float32")
    np.testing.assert_array_equal(initializer(loaded, "s"), np.float32(np.float16(0.01)))
    assert "near 65504" in reasons(made, ("y",))["MatMul_y"]


@pytest.mark.parametrize(
    ("op", "value", "kept"),
    [
        ("Add", -1e9, False),
        ("Add", 1e9, True),
        ("Mul", 1e9, True),
        ("Div", 1e-12, True),
        ("Max", 1e-12, True),
        ("Min", 3.4e38, False),
        ("Mul", 0.125, False),
        ("Add", -np.inf, False),
    ],
)
def test_constants_that_fp16_cannot_hold(op: str, value: float, kept: bool) -> None:
    made = proto([node(op, ["x", "c"], ["h"]), node("Softmax", ["h"], ["y"])], X, Y, {"c": np.float32([value] * 8)})
    assert bool(reasons(made)) == kept
    loaded, _ = halved(made)
    assert np.isfinite(initializer(loaded, "c")).all() == np.isfinite(value)
    assert initializer(loaded, "c").dtype == (np.float32 if kept else np.float16)


def test_a_constant_of_both_kinds_of_readers_is_stored_twice_and_never_cast() -> None:
    nodes = [node("Mul", ["x", "c"], ["a"]), node("Pow", ["c", "x"], ["b"]), node("Add", ["a", "b"], ["y"])]
    loaded, _ = halved(proto(nodes, X, Y, {"c": np.float32([2] * 8)}))
    assert (types(loaded)["c"], types(loaded)["c_fp16"]) == ("float32", "float16")
    assert all(source not in ("c", "c_fp16") for source, _ in casts(loaded))


def test_one_cast_serves_all_readers() -> None:
    nodes = [node("MatMul", ["x", "w"], ["h"]), *(node("Exp", ["h"], [f"e{i}"]) for i in range(3))]
    nodes += [node("Add", ["e0", "e1"], ["a"]), node("Mul", ["a", "e2"], ["y"])]
    loaded, _ = halved(proto(nodes, X, Y, {"w": normal(8, 8)}))
    assert Counter(source for source, _ in casts(loaded))["h"] == 1
    assert len(set(casts(loaded))) == len(casts(loaded))


def test_what_is_fp16_already_is_read_without_its_cast() -> None:
    """Weights, inputs and one Linear in FP16, the rest in float32 between Casts; one reader of a Cast stays in FP32."""
    nodes = [
        node("Cast", ["x"], ["x32"], to=FLOAT),
        node("Cast", ["w"], ["w32"], to=FLOAT),
        node("MatMul", ["x32", "w32"], ["a"]),
        node("Cast", ["a"], ["a16"], to=HALF),
        node("MatMul", ["a16", "v"], ["b16"]),
        node("Cast", ["b16"], ["b"], to=FLOAT),
        node("Exp", ["b"], ["e"]),
        node("MatMul", ["b", "u"], ["c"]),
        node("Add", ["c", "e"], ["y"]),
    ]
    stored = {"w": normal(8, 8, dtype=np.float16), "v": normal(8, 8, dtype=np.float16) / 8, "u": normal(8, 8)}
    made = proto(nodes, [("x", HALF, ["n", 8])], Y, stored)
    loaded, _ = halved(made)
    found = types(loaded)
    assert {found[name] for name in ("a", "b16", "c", "u")} == {"float16"}
    assert found["e"] == "float32"
    assert casts(loaded) == [("b16", "b"), ("e", "e_fp16"), ("y_fp16", "y")]
    x = normal(3, 8, dtype=np.float16) / 8
    np.testing.assert_allclose(run(loaded, {"x": x})["y"], run(made, {"x": x})["y"], atol=0.05)


def test_a_cast_that_makes_an_output_stays() -> None:
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Cast", ["a"], ["b"], to=HALF), node("Relu", ["b"], ["c"])]
    loaded, _ = halved(proto(nodes, X, [("b", HALF, None), ("c", HALF, None)], {"w": normal(8, 8)}))
    assert casts(loaded) == [("x", "x_fp16"), ("a", "b")]


def test_names_that_onnxruntime_gives_its_casts_are_free_for_it() -> None:
    """It saves a model in FP16 so, and inserts a Cast of that name before the Gemm when it loads the result."""
    inserted = "InsertedPrecisionFreeCast_x"
    nodes = [
        node("Cast", ["x"], [inserted], to=FLOAT),
        node("Exp", [inserted], ["e"]),
        node("Gemm", [inserted, "w"], ["g"]),
        node("Add", ["g", "e"], ["y"]),
    ]
    made = proto(nodes, [("x", HALF, [3, 8])], [("y", FLOAT, None)], {"w": normal(8, 8)})
    loaded, _ = halved(made)
    x = normal(3, 8, dtype=np.float16)
    found = Session(onnx.load_from_string(io.to_bytes(loaded)).SerializeToString()).run({"x": x})["y"]
    np.testing.assert_allclose(found, run(made, {"x": x})["y"], atol=0.05)


def test_casts_that_were_there_are_retyped_or_go() -> None:
    nodes = [
        node("Cast", ["x"], ["c"], to=FLOAT),
        node("MatMul", ["c", "w"], ["h"]),
        node("Cast", ["mask"], ["f"], to=FLOAT),
        node("Mul", ["h", "f"], ["y"]),
    ]
    made = proto(nodes, [*X, ("mask", TensorProto.BOOL, ["n", 6])], Y, {"w": normal(8, 6)})
    loaded, _ = halved(made)
    assert sorted(casts(loaded)) == [("mask", "f"), ("x", "c"), ("y_fp16", "y")]
    feed = {"x": normal(2, 8), "mask": np.ones((2, 6), bool)}
    np.testing.assert_allclose(run(loaded, feed)["y"], run(made, feed)["y"], atol=0.02)


def test_coordinates_stay_in_fp32_up_to_the_boxes() -> None:
    """Sizes counted in pixels times relative boxes: FP16 would be two pixels wrong at 4000."""
    nodes = [
        node("MatMul", ["x", "w"], ["h"]),
        node("Sigmoid", ["h"], ["b"]),
        node("Cast", ["sizes"], ["s"], to=FLOAT),
        node("Mul", ["b", "s"], ["y"]),
    ]
    made = proto(nodes, [*X, ("sizes", INT64, ["n", 4])], Y, {"w": normal(8, 4)})
    assert set(reasons(made)) == {"Sigmoid_b", "Cast_s", "Mul_y"}
    feed = {"x": normal(2, 8), "sizes": np.full((2, 4), 3999)}
    np.testing.assert_allclose(run(halved(made)[0], feed)["y"], run(made, feed)["y"], atol=8)


def test_shape_arithmetic_and_resize_scales_stay() -> None:
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Cast", ["shape"], ["f"], to=FLOAT),
        node("Mul", ["f", "two"], ["g"]),
        node("Cast", ["g"], ["sizes"], to=INT64),
        node("Resize", ["x", "", "", "sizes"], ["r"], mode="nearest"),
        node("Resize", ["r", "", "scales"], ["y"], mode="nearest"),
    ]
    made = proto(nodes, X, Y, {"two": np.float32([1, 2]), "scales": np.float32([1, 0.5])})
    assert set(reasons(made)) == {"Cast_f", "Mul_g", "Cast_sizes"}
    loaded, _ = halved(made)
    assert (types(loaded)["scales"], types(loaded)["r"]) == ("float32", "float16")
    assert run(loaded, {"x": normal(2, 8)})["y"].shape == (2, 8)


def test_a_weight_in_a_shape_is_no_shape() -> None:
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Expand", ["token", "shape"], ["t"]),
        node("Concat", ["t", "x"], ["y"], axis=1),
    ]
    loaded, _ = halved(proto(nodes, X, Y, {"token": normal(1, 8)}))
    assert initializer(loaded, "token").dtype == np.float16


def test_non_max_suppression_has_no_fp16_form() -> None:
    nodes = [
        node("Sigmoid", ["boxes"], ["b"]),
        node("NonMaxSuppression", ["b", "scores", "most"], ["y"]),
    ]
    inputs = [("boxes", FLOAT, [1, 5, 4]), ("scores", FLOAT, [1, 2, 5])]
    made = proto(nodes, inputs, [("y", INT64, None)], {"most": np.array([3])})
    assert reasons(made)["NonMaxSuppression_y"] == "the operator has no FP16 form"
    assert run(halved(made)[0], {"boxes": normal(1, 5, 4), "scores": normal(1, 2, 5)})["y"].shape[1] == 3


def test_subgraphs_keep_what_they_read() -> None:
    inner = [graph([node(op, ["h"], [f"{op}_e"])], [], [(f"{op}_e", FLOAT, None)], {}) for op in ("Abs", "Neg")]
    nodes = [
        node("MatMul", ["x", "w"], ["h"]),
        node("If", ["c"], ["i"], then_branch=inner[0], else_branch=inner[1]),
        node("MatMul", ["i", "w2"], ["k"]),
        node("Add", ["k", "h"], ["y"]),
    ]
    made = proto(nodes, [*X, ("c", TensorProto.BOOL, [])], Y, {"w": normal(8, 8), "w2": normal(8, 8, seed=1)})
    loaded, _ = halved(made)
    assert (types(loaded)["h"], types(loaded)["h_fp16"], types(loaded)["i"]) == ("float32", "float16", "float32")
    feed = {"x": normal(2, 8), "c": np.array(True)}
    np.testing.assert_allclose(run(loaded, feed)["y"], run(made, feed)["y"], atol=0.1)


def test_other_domains_keep_their_types() -> None:
    made = proto(
        [node("MatMul", ["x", "w"], ["h"]), node("Mine", ["h"], ["y"], domain="my.ops")], X, Y, {"w": normal(8, 8)}
    )
    made.opset_import.append(helper.make_opsetid("my.ops", 1))
    loaded = model(made)
    structure = analyse(loaded)
    kept = kept_single(loaded, structure.flow, structure.types)
    halve(loaded, structure.types, set(kept))
    assert ("h", "h_fp32") in casts(loaded) or ("h_fp16", "h") in casts(loaded)
    (mine,) = [n for n in loaded.graph.nodes if n.op == "Mine"]
    assert types(loaded)[mine.inputs[0].name] == "float32"


def test_int8_and_half_inputs_pass_through() -> None:
    nodes = [node("Cast", ["a"], ["f"], to=HALF), node("Add", ["f", "b"], ["y"])]
    made = proto(nodes, [("a", INT8, [2]), ("b", HALF, [2])], [("y", HALF, None)])
    loaded, done = halved(made)
    assert done.casts == []
    assert len(loaded.graph.nodes) == 2
