"""The walk along attention: what it finds, and its reason where it finds nothing; in ONNX the same for cores."""

import operator
from collections.abc import Callable
from pathlib import Path

import pytest
from onnx import TensorProto, helper

torch = pytest.importorskip("torch", reason="needs the extra `train`")

from gpusq_onnx.graph.attention import Exact, follow  # noqa: E402
from gpusq_onnx.graph.model import from_proto  # noqa: E402
from gpusq_onnx.graph.structure import analyse  # noqa: E402
from gpusq_onnx.torchgraph.fx_nodes import FxNodes  # noqa: E402

matmul, softmax = torch.matmul, torch.softmax


def walk(function: Callable[..., object]) -> Exact | str:
    """From the first product of a function on; sigmoids take the place of pairs."""
    graph = torch.fx.symbolic_trace(function).graph
    first = next(node for node in graph.nodes if node.target is torch.matmul)
    return follow(FxNodes(lambda node: node.target is torch.sigmoid), first)


def test_factors_a_mask_and_pairs_are_found() -> None:
    found = walk(lambda q, k, v, m: matmul(torch.sigmoid(softmax(m + matmul(q, k) * 0.5 / 4.0, -1)), v))
    assert isinstance(found, Exact)
    assert found.scale == 0.125 and [factor.node.target for factor in found.factors] == [operator.mul, operator.truediv]
    assert found.mask.name == "m" and len(found.quantisers) == 1 and found.context.args[1].name == "v"
    bare = walk(lambda q, k, v: matmul(softmax(matmul(q, k), -1), v))
    assert isinstance(bare, Exact) and (bare.scale, bare.mask, bare.quantisers) == (1.0, None, ())


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda q, k, v: matmul(softmax(matmul(q, k), 1), v), "no Softmax over the last axis"),
        (lambda q, k, v: matmul(softmax(torch.relu(matmul(q, k)), -1), v), "no Softmax over the last axis"),
        (lambda q, k, v: matmul(softmax((matmul(q, k) + v) * 2, -1), v), "no Softmax over the last axis"),
        (lambda q, k, v: (lambda s: matmul(softmax(s, -1), v) + s)(matmul(q, k)), "no Softmax over the last axis"),
        (lambda q, k, v: torch.relu(softmax(matmul(q, k), -1)), "no product is the only reader"),
        (lambda q, k, v: matmul(v, softmax(matmul(q, k), -1)), "not the left operand"),
        (lambda q, k, v: (lambda r: matmul(softmax(matmul(q, v) + r, -1), v))(matmul(q, k)), "a product itself"),
    ],
)
def test_what_is_no_attention_has_a_reason(function: Callable[..., object], reason: str) -> None:
    found = walk(function)
    assert isinstance(found, str) and reason in found


def test_a_softmax_of_an_onnx_graph_that_is_in_no_core_has_a_reason() -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4, 4]) for name in "xpy"]
    nodes = [
        helper.make_node("Softmax", ["x"], ["p"]),
        helper.make_node("MatMul", ["p", "x"], ["s"]),
        helper.make_node("Softmax", ["s"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    found = analyse(from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), Path()))
    assert found.attentions == [] and list(found.other_softmaxes) == ["p", "y"]
    assert found.other_softmaxes["p"].startswith("0 products") and "lead to" in found.other_softmaxes["p"]
    assert "read the Softmax" in found.other_softmaxes["y"]
