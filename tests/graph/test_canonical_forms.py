"""canonical: every rewrite computes the same as onnxruntime does before, and what stays has its reason."""

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper

from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.rewrites.canonical import NodeChange, canonicalise
from gpusq_onnx.graph.sites import find_sites
from tests.graph.small_graphs import FLOAT, HALF, Array, graph, model, node, normal, proto, run


def _einsum(equation: str, *shapes: tuple[int, ...], constant: int | None = None, opset: int = 17) -> ModelProto:
    names = ["a", "b"][: len(shapes)]
    fed = [i for i in range(len(shapes)) if i != constant]
    constants = {} if constant is None else {names[constant]: normal(*shapes[constant], seed=7)}
    return proto(
        [node("Einsum", names, ["y"], equation=equation)],
        [(names[i], FLOAT, shapes[i]) for i in fed],
        [("y", FLOAT, None)],  # type: ignore[list-item]
        constants,
        opset,
    )


def _feed(made: ModelProto) -> dict[str, Array]:
    return {
        value.name: normal(*(dim.dim_value or 2 for dim in value.type.tensor_type.shape.dim), seed=i)
        for i, value in enumerate(made.graph.input)
    }


def _same(made: ModelProto, feed: dict[str, Array], **options: Any) -> tuple[Model, list[NodeChange]]:
    """The model rewritten, once its outputs were found to be those from before."""
    rewritten = model(made)
    changes = canonicalise(rewritten, **options)
    before, after = run(made, feed), run(rewritten, feed)
    for name, values in before.items():
        np.testing.assert_allclose(after[name], values, rtol=1e-4, atol=1e-5)
        assert after[name].dtype == values.dtype
    assert canonicalise(rewritten.clone(), **options) == [change for change in changes if change.kept], "idempotent"
    return rewritten, changes


def _operators(found: Model) -> list[str]:
    return [n.op for n in found.graph.nodes]


CONSTANT = {
    "keras dense": ("abc,cd->abd", (2, 5, 8), (8, 6), 1, ["MatMul"]),
    "keras q, k, v": ("abc,cde->abde", (2, 5, 8), (8, 3, 4), 1, ["MatMul", "Reshape"]),
    "keras out": ("abcd,cde->abe", (2, 5, 3, 4), (3, 4, 8), 1, ["Reshape", "MatMul"]),
    "constant first": ("oc,bnc->bno", (6, 8), (2, 5, 8), 0, ["MatMul"]),
    "channels first": ("bchw,oc->bohw", (2, 8, 3, 5), (6, 8), 1, ["Transpose", "MatMul", "Transpose"]),
    "dots": ("...c,oc->...o", (2, 5, 8), (6, 8), 1, ["MatMul"]),
    "no arrow": ("ij,jk", (5, 8), (8, 6), 1, ["MatMul"]),
    "sum order": ("bdc,cde->be", (2, 4, 3), (3, 4, 8), 1, ["Transpose", "Reshape", "MatMul"]),
}


@pytest.mark.parametrize("name", CONSTANT)
def test_an_einsum_with_a_weight_is_a_linear(name: str) -> None:
    equation, a, b, constant, operators = CONSTANT[name]
    made = _einsum(equation, a, b, constant=constant)
    found, changes = _same(made, _feed(made))
    assert _operators(found) == operators
    (site,) = find_sites(found)
    summed = {"sum order": 12, "keras out": 12}.get(name, 8)
    assert (site.op, site.k, site.conflicts) == ("MatMul", summed, [])
    assert [change.kept for change in changes] == [False]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("factors", [{"alpha": 0.25}, {"beta": 3.0}, {"alpha": 0.25, "beta": 0.0, "transB": 1}])
def test_the_constants_of_a_gemm_take_its_factors(factors: dict[str, Any], bias: bool) -> None:
    weight = normal(6, 8) if "transB" in factors else normal(8, 6)
    inputs = ["x", "w", "b"] if bias else ["x", "w"]
    stored = {"w": weight, "b": normal(6, seed=1)} if bias else {"w": weight}
    made = proto([node("Gemm", inputs, ["y"], **factors)], [("x", FLOAT, (5, 8))], [("y", FLOAT, (5, 6))], stored)
    assert [site.unfit for site in find_sites(model(made))] != [[]]
    found, changes = _same(made, _feed(made))
    assert [change.kept for change in changes] == [False]
    assert [site.unfit for site in find_sites(found)] == [[]]


@pytest.mark.parametrize("factors", [{"alpha": 0.5}, {"beta": 2.0}])
def test_a_weight_that_several_nodes_read_stays_one(factors: dict[str, Any]) -> None:
    einsum = {"equation": "bc,dc->bd"}
    nodes = [node("Gemm", ["x", "w", "b"], [f"g{i}"], **factors) for i in range(2)]
    nodes += [node("Einsum", [f"g{i}", "v"], [f"y{i}"], **einsum) for i in range(2)]
    stored = {"w": normal(8, 6), "b": normal(6, seed=1), "v": normal(5, 6, seed=2)}
    made = proto(nodes, [("x", FLOAT, (5, 8))], [(f"y{i}", FLOAT, (5, 5)) for i in range(2)], stored)
    found, changes = _same(made, _feed(made))
    assert [change.kept for change in changes] == [False] * 4
    assert sorted(len(site.readers) for site in find_sites(found)) == [2, 2]


def test_a_gemm_keeps_factors_that_its_constants_cannot_take() -> None:
    inputs = [("x", FLOAT, (5, 8)), ("c", FLOAT, (6,))]
    nodes = [
        node("Gemm", ["x", "w", "c"], ["a"], alpha=2.0),
        node("Gemm", ["x", "v"], ["b"], alpha=2.0),
        node("Gemm", ["x", "v"], ["d"]),
    ]
    outputs = [(name, FLOAT, (5, 6)) for name in "abd"]
    made = proto(nodes, inputs, outputs, {"w": normal(8, 6), "v": normal(8, 6, seed=1)})
    _, changes = _same(made, _feed(made))
    assert {change.tensor: change.reason for change in changes if change.kept} == {
        "a": "its weight or its bias is computed",
        "b": "'v' is read elsewhere, too",
    }


DATA = {
    "scores": ("bhqd,bhkd->bhqk", (2, 3, 5, 4), (2, 3, 7, 4), ["Transpose", "MatMul"]),
    "keras scores": ("aecd,abcd->acbe", (2, 7, 3, 4), (2, 5, 3, 4), ["Transpose", "Transpose", "MatMul", "Transpose"]),
    "keras context": ("acbe,aecd->abcd", (2, 3, 5, 7), (2, 7, 3, 4), ["Transpose", "MatMul", "Transpose"]),
    "two rows": ("bijc,bkc->bijk", (2, 3, 5, 4), (2, 7, 4), ["Transpose", "Reshape", "MatMul", "Reshape"]),
    "no rows": ("bc,bkc->bk", (2, 4), (2, 7, 4), ["Transpose", "Reshape", "MatMul", "Reshape"]),
    "dots": ("...qd,...kd->...qk", (2, 3, 5, 4), (2, 3, 7, 4), ["Transpose", "MatMul"]),
}


@pytest.mark.parametrize("name", DATA)
def test_an_einsum_of_data_is_a_matmul(name: str) -> None:
    equation, a, b, operators = DATA[name]
    made = _einsum(equation, a, b)
    found, _ = _same(made, _feed(made))
    assert sorted(_operators(found)) == sorted(operators)


def test_one_operand_is_transposed() -> None:
    made = _einsum("abc->cab", (2, 3, 4))
    assert _operators(_same(made, _feed(made))[0]) == ["Transpose"]


def test_dynamic_axes_stay_dynamic() -> None:
    made = proto(
        [
            node("Einsum", ["x", "w"], ["h"], equation="abc,cde->abde"),
            node("Einsum", ["h", "h"], ["y"], equation="aecd,abcd->acbe"),
        ],
        [("x", FLOAT, ["batch", "tokens", 8])],
        [("y", FLOAT, None)],  # type: ignore[list-item]
        {"w": normal(8, 3, 4)},
    )
    _same(made, {"x": normal(2, 5, 8)})
    found, _ = _same(made, {"x": normal(3, 9, 8)})
    assert "Einsum" not in _operators(found)


KEPT = {
    "a diagonal": ("bii->bi", [(2, 3, 3)], None, "a diagonal"),
    "a sum over one": ("bij,jk->bk", [(2, 3, 4), (4, 5)], 1, "over an axis of one operand"),
    "a matrix a head": ("bhnd,hde->bhne", [(2, 3, 5, 4), (3, 4, 6)], 1, "one matrix for each 'h'"),
    "element by element": ("bij,bij->bij", [(2, 3, 4), (2, 3, 4)], None, "element by element"),
    "a vector": ("bnc,c->bn", [(2, 3, 4), (4,)], 1, "with a vector"),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_is_no_product_stays_with_its_reason(name: str) -> None:
    equation, shapes, constant, reason = KEPT[name]
    made = _einsum(equation, *shapes, constant=constant)
    found, (change,) = _same(made, _feed(made))
    assert _operators(found) == ["Einsum"]
    assert change.kept
    assert reason in change.reason


ATTENTION: dict[str, tuple[dict[str, Any], list[tuple[int, ...]], dict[str, Array]]] = {
    "four dimensions": ({}, [(2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6)], {}),
    "scale": ({"scale": 0.3}, [(2, 3, 5, 4)] * 3, {}),
    "causal": ({"is_causal": 1}, [(2, 3, 5, 4)] * 3, {}),
    "softcap": ({"softcap": 2.0}, [(2, 3, 5, 4)] * 3, {}),
    "float mask": ({}, [(2, 3, 5, 4)] * 3, {"mask": normal(5, 5)}),
    "boolean mask": ({}, [(2, 3, 5, 4)] * 3, {"mask": np.tri(5, 5, 2, dtype=np.bool_)}),
    "grouped heads": ({}, [(2, 6, 5, 4), (2, 3, 5, 4), (2, 3, 5, 4)], {}),
    "three dimensions": ({"q_num_heads": 3, "kv_num_heads": 3}, [(2, 5, 12)] * 3, {}),
    "three, grouped": ({"q_num_heads": 6, "kv_num_heads": 3}, [(2, 5, 24), (2, 5, 12), (2, 5, 12)], {}),
}


def _attention(name: str, kind: int = FLOAT) -> ModelProto:
    attributes, shapes, constants = ATTENTION[name]
    inputs = [(letter, kind, shape) for letter, shape in zip("qkv", shapes, strict=True)]
    made = node("Attention", ["q", "k", "v", *constants], ["y"], **attributes)
    return proto([made], inputs, [("y", kind, None)], constants, 23)  # type: ignore[list-item]


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_is_two_products(name: str) -> None:
    made = _attention(name)
    found, (change,) = _same(made, _feed(made))
    assert _operators(found).count("MatMul") == 2
    assert "Attention" not in _operators(found)
    assert change.op == "Attention"


def test_attention_in_half_precision_stays_half() -> None:
    made = _attention("four dimensions", HALF)
    feed = {name: values.astype(np.float16) for name, values in _feed(made).items()}
    found = model(made)
    canonicalise(found)
    np.testing.assert_allclose(run(found, feed)["y"], run(made, feed)["y"], rtol=1e-2, atol=1e-2)


def test_long_attention_stays_fused() -> None:
    fused = node("Attention", ["q", "q", "q"], ["y"])
    made = proto([fused], [("q", FLOAT, (1, 1, 600, 4))], [("y", FLOAT, (1, 1, 600, 4))], {}, 23)
    (change,) = canonicalise(model(made))
    assert change.kept
    assert change.reason == "600 tokens: above 512 the fused kernel is left alone"


def test_attention_can_be_left_alone() -> None:
    assert canonicalise(model(_attention("scale")), ["Einsum"]) == []


def _branches(condition: list[Any], constants: dict[str, Array]) -> ModelProto:
    """y = If(condition): x @ w + b, or x - 1; the inner tensors have names that the graph has, too."""
    two = node("Constant", [], ["b"], value_float=2.0)
    product = [node("MatMul", ["x", "w"], ["t"]), two, node("Add", ["t", "b"], ["then_y"])]
    then = graph(product, [], [("then_y", FLOAT, (2, 8))], {"w": normal(8, 8)})
    minus = [node("Sub", ["x", "one"], ["else_y"])]
    other = graph(minus, [], [("else_y", FLOAT, (2, 8))], {"one": np.ones(1, np.float32)})
    choice = node("If", ["c"], ["y"], then_branch=then, else_branch=other)
    return proto(
        [*condition, choice, node("Relu", ["y"], ["t2"]), node("Neg", ["t2"], ["z"])],
        [("x", FLOAT, (2, 8))],
        [("z", FLOAT, (2, 8)), ("y", FLOAT, (2, 8))],
        constants,
    )


@pytest.mark.parametrize("taken", [True, False])
def test_a_constant_condition_takes_its_branch(taken: bool) -> None:
    made = _branches([], {"c": np.array(taken)})
    found, (change,) = _same(made, {"x": normal(2, 8)})
    assert _operators(found) == (["MatMul", "Add"] if taken else ["Sub"]) + ["Relu", "Neg"]
    assert len(find_sites(found)) == taken
    assert (change.op, change.tensor) == ("If", "y")


def test_a_condition_on_a_known_shape_is_folded_first() -> None:
    rank = [node("Shape", ["x"], ["s"]), node("Gather", ["s", "zero"], ["n"]), node("Equal", ["n", "two"], ["c"])]
    made = _branches(rank, {"zero": np.array(0), "two": np.array(2)})
    found, changes = _same(made, {"x": normal(2, 8)})
    assert _operators(found) == ["MatMul", "Add", "Relu", "Neg"]
    assert [change.op for change in changes] == ["Equal", "If"]


def test_a_condition_on_data_stays() -> None:
    made = _branches(
        [node("ReduceSum", ["x"], ["r"], keepdims=0), node("Greater", ["r", "zero"], ["c"])], {"zero": np.float32(0)}
    )
    found, (change,) = _same(made, {"x": normal(2, 8)})
    assert "If" in _operators(found)
    assert "not known before the model runs" in change.reason


def test_two_branches_with_the_same_names_do_not_meet() -> None:
    made = _branches([], {"c": np.array(True)})
    again = helper.make_node("If", ["c"], ["y2"], name="second")
    again.attribute.extend(made.graph.node[0].attribute)
    made.graph.node.append(again)
    made.graph.output.append(helper.make_tensor_value_info("y2", FLOAT, None))
    found, _ = _same(made, {"x": normal(2, 8)})
    assert _operators(found).count("MatMul") == 2


WEIGHTS = {
    "reshaped": [node("Reshape", ["w", "shape"], ["v"])],
    "scaled": [node("Mul", ["w6", "s"], ["v"])],
    "from an Einsum": [node("Einsum", ["p", "q"], ["v"], equation="ki,in->kn")],
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_computed_weight_becomes_one_initializer(name: str) -> None:
    shapes = {"w": (48,), "w6": (8, 6), "s": (6,), "p": (8, 4), "q": (4, 6)}
    constants = {"shape": np.array([8, 6])} | {key: normal(*shape) for key, shape in shapes.items()}
    read = {text for n in WEIGHTS[name] for text in n.input}
    made = proto(
        [*WEIGHTS[name], node("MatMul", ["x", "v"], ["y"])],
        [("x", FLOAT, (2, 8))], [("y", FLOAT, (2, 6))], {k: v for k, v in constants.items() if k in read},
    )  # fmt: skip
    found, changes = _same(made, {"x": normal(2, 8)})
    assert _operators(found) == ["MatMul"]
    assert [(site.out, site.k) for site in find_sites(found)] == [(6, 8)]
    assert changes[0].reason.startswith("one initializer")


def test_a_smoothed_resize_of_a_constant_is_folded() -> None:
    made = proto(
        [node("Resize", ["table", "", "", "sizes"], ["t"], mode="cubic", antialias=1), node("Add", ["x", "t"], ["y"])],
        [("x", FLOAT, (1, 4, 3, 3))], [("y", FLOAT, (1, 4, 3, 3))],
        {"table": normal(1, 4, 7, 7), "sizes": np.array([1, 4, 3, 3])},
    )  # fmt: skip
    assert _operators(_same(made, {"x": normal(1, 4, 3, 3)})[0]) == ["Add"]


def test_views_of_weights_and_products_of_constants_are_left_alone() -> None:
    made = proto(
        [node("Transpose", ["w"], ["v"]), node("MatMul", ["x", "v"], ["y"]), node("Relu", ["w"], ["r"]),
         node("MatMul", ["r", "v"], ["z"])],
        [("x", FLOAT, (2, 6))], [("y", FLOAT, None), ("z", FLOAT, None)], {"w": normal(8, 6)},  # type: ignore[list-item]
    )  # fmt: skip
    assert canonicalise(model(made)) == []


def test_a_condition_on_the_shape_of_a_computed_constant_is_folded() -> None:
    """SAM 2 asks for the shape of a resized position table: a Shape node must not stay without its output."""
    sizes = [
        node("Relu", ["table"], ["computed"]),
        node("Shape", ["computed"], ["s"]),
        node("Size", ["s"], ["n"]),
        node("Equal", ["n", "two"], ["c"]),
    ]
    found, changes = _same(_branches(sizes, {"table": normal(3, 4), "two": np.array(2)}), {"x": normal(2, 8)})
    assert _operators(found) == ["MatMul", "Add", "Relu", "Neg"]
    assert [change.op for change in changes] == ["Equal", "If"]
