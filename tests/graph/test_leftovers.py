"""Products with a constant that are no site: all are found, each with its reason, and plans have a row for each."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper

from gpusq_onnx.errors import NothingMatched
from gpusq_onnx.graph.structure import analyse
from gpusq_onnx.passes.int4 import Int4Weights
from gpusq_onnx.passes.prune import Prune24
from gpusq_onnx.passes.qdq import QdqInt8
from gpusq_onnx.pipeline.base import PlanContext
from gpusq_onnx.pipeline.summary import measure
from gpusq_onnx.report.inspection import inspect_model
from gpusq_onnx.report.outline import of_inspection
from tests.graph.small_graphs import FLOAT, graph, model, node, normal, proto

X = [("x", FLOAT, [2, 4, 32])]
Y = [("y", FLOAT, None)]
LINEAR = [node("MatMul", ["x", "linear"], ["g"]), node("LayerNormalization", ["g", "norm"], ["h"])]


def made(nodes: list[Any], **constants: Any) -> ModelProto:
    """A Linear and a norm, and the nodes that read its output `h`."""
    return proto([*LINEAR, *nodes], X, Y, {"linear": normal(32, 32), "norm": normal(32), **constants}, opset=20)


def experts() -> ModelProto:
    before = [node("Unsqueeze", ["h", "one"], ["u"]), node("MatMul", ["u", "w"], ["y"])]
    return made(before, one=np.array([1]), w=normal(3, 32, 64))


def learned_query() -> ModelProto:
    return made(
        [node("Transpose", ["h"], ["t"], perm=[0, 2, 1]), node("MatMul", ["w", "t"], ["y"])], w=normal(2, 1, 32)
    )


def vector() -> ModelProto:
    return made([node("MatMul", ["h", "w"], ["y"])], w=normal(32))


def einsum() -> ModelProto:
    return made([node("Einsum", ["h", "w"], ["y"], equation="bnc,nkc->bnk")], w=normal(4, 16, 32))


def kernel_of_data() -> ModelProto:
    nodes = [node("Unsqueeze", ["h", "one"], ["k"]), node("Conv", ["w", "k"], ["y"])]
    return made(nodes, one=np.array([2]), w=normal(1, 4, 8, 40))


def branch(name: str = "choose") -> ModelProto:
    inner = graph([node("MatMul", ["h", "w"], ["t"])], [], [("t", FLOAT, [2, 4, 32])], {"w": normal(32, 32)})
    other = graph([node("Relu", ["h"], ["e"])], [], [("e", FLOAT, [2, 4, 32])], {})
    largest = node("ReduceMax", ["h"], ["m"], keepdims=0)
    nodes = [largest, node("Greater", ["m", "zero"], ["c"])]
    choose = node("If", ["c"], ["y"], name=name, then_branch=inner, else_branch=other)
    return made([*nodes, choose], zero=np.array(0, np.float32))


def recurrent() -> ModelProto:
    gru = node("GRU", ["h", "w", "r"], ["y"], hidden_size=16)
    return made([gru], w=normal(1, 48, 32), r=normal(1, 48, 16))


CASES: dict[str, tuple[Callable[[], ModelProto], list[str], str]] = {
    "experts": (experts, ["w"], "one matrix for each of 3 positions, heads or experts"),
    "a learned query": (learned_query, ["w"], "one matrix for each of 2 positions, heads or experts"),
    "a vector": (vector, ["w"], "it multiplies with a vector"),
    "an Einsum with a matrix for each position": (einsum, ["w"], "an Einsum that is no product with one matrix"),
    "a Conv whose kernel is data": (kernel_of_data, ["w"], "the constant is its input, and its weight is data"),
    "a branch": (branch, ["w"], "inside node 'choose' (If)"),
    "a GRU": (recurrent, ["w", "r"], "GRU: no operator that is pruned or quantised here"),
}


@pytest.mark.parametrize("name", CASES)
def test_each_has_its_reason(name: str) -> None:
    build, tensors, reason = CASES[name]
    structure = analyse(model(build()))
    assert [left.tensor for left in structure.leftovers] == tensors
    assert all(reason in left.reason for left in structure.leftovers)
    assert [site.name for site in structure.sites] == ["linear"]


@pytest.mark.parametrize("step", [Prune24, QdqInt8, Int4Weights])
def test_plans_have_a_row_for_each(step: Any) -> None:
    found = model(experts())
    rows = step(step.Options()).plan(found, analyse(found), PlanContext())
    (row,) = (row for row in rows if row.tensor == "w")
    assert (row.skipped, row.role, row.op, row.shape) == (True, "product", "MatMul", (3, 32, 64))


def test_a_node_without_a_name_is_named_by_what_it_makes() -> None:
    """As those are that come out of local functions."""
    found = model(branch(""))
    for inside in found.graph.subgraphs(recursive=True):
        for product in inside.nodes:
            product.name = ""
    (other,) = inspect_model(found).others
    assert other.reason.startswith("inside the If node that makes 'y': ")
    assert other.reader == "the MatMul node that makes 't'"


def test_inspect_names_them() -> None:
    found = inspect_model(model(recurrent()))
    assert [other.name for other in found.others] == ["w", "r"]
    assert [weight.name for weight in found.weights] == ["linear"]
    lines = of_inspection("m.onnx", found, 120)
    assert "2 x no weight matrix: GRU: no operator that is pruned or quantised here" in lines


@pytest.mark.parametrize("width", [40, 120])
def test_a_model_of_nothing_else_is_inspected_and_says_why(width: int) -> None:
    nodes = [node("ReduceMax", ["x"], ["m"], keepdims=0), node("Greater", ["m", "zero"], ["c"])]
    inner = [graph([node("MatMul", ["x", w], [f"{w}_y"])], [], [(f"{w}_y", FLOAT, [2, 4, 32])], {w: normal(32, 32)})
             for w in ("a", "b")]  # fmt: skip
    choose = node("If", ["c"], ["y"], name="choose", then_branch=inner[0], else_branch=inner[1])
    found = model(proto([*nodes, choose], X, Y, {"zero": np.array(0, np.float32)}, opset=20))
    said = " ".join(of_inspection("m.onnx", inspect_model(found), width))
    assert "2 x no weight matrix: inside node 'choose' (If)" in " ".join(said.split())
    with pytest.raises(NothingMatched, match=r"inside node 'choose' \(If\)") as caught:
        Prune24(Prune24.Options()).plan(found, analyse(found), PlanContext())
    assert {row.tensor for row in caught.value.rows} == {"a", "b"}
    assert measure(found, analyse(found)).total["parameters"] == 2 * 32 * 32 + 1, "both branches are in the file"


def test_what_is_no_product_of_data_is_none() -> None:
    """A product of constants, one of data alone, and a sum with a table."""
    nodes = [
        node("MatMul", ["a", "b"], ["table"]),
        node("Add", ["h", "table"], ["s"]),
        node("Transpose", ["s"], ["t"], perm=[0, 2, 1]),
        node("MatMul", ["s", "t"], ["y"]),
    ]
    assert analyse(model(made(nodes, a=normal(4, 8), b=normal(8, 32)))).leftovers == []


def test_codes_of_a_few_bits_have_a_row_and_a_reason() -> None:
    """A model of onnxruntime's weight-only quantiser: nothing to prune, which is said of the weights themselves."""
    codes = {"q": np.zeros((32, 1, 16), np.uint8), "s": np.ones(32, np.float32)}
    nbits = helper.make_node(
        "MatMulNBits", ["x", "q", "s"], ["y"], domain="com.microsoft", N=32, K=32, bits=4, block_size=32
    )
    made = proto([nbits], X, Y, codes, opset=20)
    made.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    found = model(made)
    with pytest.raises(NothingMatched, match="stored as codes of 4 bits: start from the float model") as caught:
        Prune24(Prune24.Options()).plan(found, analyse(found), PlanContext())
    assert [(row.tensor, row.shape) for row in caught.value.rows] == [("q", (32, 32))]


def test_products_of_data_in_no_attention_core_have_rows_when_pairs_are_planned() -> None:
    """Gram matrices, linear attention, a Softmax taken apart: nothing stays in float in silence."""
    nodes = [
        node("Transpose", ["h"], ["t"], perm=[0, 2, 1]),
        node("MatMul", ["h", "t"], ["s"]),
        node("Relu", ["s"], ["p"]),
        node("MatMul", ["p", "h"], ["c"]),
        node("Einsum", ["c", "h", "h"], ["y"], equation="bnc,bnc,bnc->bc"),
    ]
    found = model(made(nodes))
    structure = analyse(found)
    assert (structure.attentions, structure.leftovers) == ([], [])
    rows = [row for row in QdqInt8(QdqInt8.Options()).plan(found, structure, PlanContext()) if row.role == "product"]
    assert [(row.tensor, row.op, row.shape, row.skipped) for row in rows] == [
        ("s", "MatMul", (2, 4, 4), True),
        ("c", "MatMul", (2, 4, 32), True),
        ("y", "Einsum", (2, 32), True),
    ]
    assert len({row.reason for row in rows}) == 1, "they are one line of the screen"
    assert "in no attention core (product, Softmax over the last axis, product)" in rows[0].reason
    for step in (Prune24, Int4Weights):
        assert not [row for row in step(step.Options()).plan(found, structure, PlanContext()) if row.role == "product"]


def test_products_of_data_in_branches_have_rows_too() -> None:
    """The outer tensor times itself, beside a product with a constant, which has its row anyway."""
    made_here = [
        node("Transpose", ["h"], ["t"], perm=[0, 2, 1]),
        node("MatMul", ["h", "t"], ["s"]),
        node("MatMul", ["s", "h"], ["c"]),
        node("MatMul", ["c", "w"], ["i"]),
    ]
    inner = graph(made_here, [], [("i", FLOAT, [2, 4, 32])], {"w": normal(32, 32)})
    other = graph([node("Relu", ["h"], ["e"])], [], [("e", FLOAT, [2, 4, 32])], {})
    nodes = [node("ReduceMax", ["h"], ["m"], keepdims=0), node("Greater", ["m", "zero"], ["c0"])]
    choose = node("If", ["c0"], ["y"], name="choose", then_branch=inner, else_branch=other)
    found = model(made([*nodes, choose], zero=np.array(0, np.float32)))
    rows = QdqInt8(QdqInt8.Options()).plan(found, analyse(found), PlanContext())
    inside = {row.tensor: row.reason for row in rows if row.role == "product"}
    assert list(inside) == ["w", "s", "c"]
    assert len(set(inside.values())) == 1
