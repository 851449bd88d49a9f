"""Attention with keys by queries: it computes the same turned, and is an attention core then."""

import numpy as np
import pytest
from onnx import NodeProto, helper, numpy_helper

from gpusq_onnx.graph.rewrites.canonical import canonicalise
from gpusq_onnx.graph.structure import analyse
from tests.graph.attention_graphs import (
    BLEND,
    LEARNED,
    MASK_OF_A_PRODUCT,
    OTHERS,
    SCORES,
    SOFTMAX,
    TO_LEFT,
    TURNED,
    attention,
)
from tests.graph.small_graphs import FLOAT, model, node, normal, run

FEED = {"x": normal(2, 16, 64, seed=3)}


@pytest.mark.parametrize("form", TURNED)
def test_a_turned_form_computes_the_same_and_is_a_core(form: str) -> None:
    made = attention(TURNED[form])
    before = analyse(model(made)).attentions
    assert before == [] or form == "K Q', a Transpose before the Softmax"
    found = model(made)
    assert all(not change.kept for change in canonicalise(found))
    np.testing.assert_allclose(run(found, FEED)["y"], run(made, FEED)["y"], rtol=1e-4, atol=1e-5)
    (core,) = analyse(found).attentions
    (softmax,) = (node for node in found.graph.nodes if node.op == "Softmax")
    assert softmax.attrs["axis"] in (-1, 3)
    ops = [node.op for node in found.graph.nodes]
    assert ops.count("Transpose") == 5, "q, k, v and the context by heads, and K'"
    assert ops.count("MatMul") == 7
    assert core.tokens == 16
    assert core.proj is not None
    assert [site.role for site in analyse(found).sites][:3] == ["q", "k", "v"]
    assert canonicalise(found) == []


@pytest.mark.parametrize("middle", [*OTHERS.values(), LEARNED, BLEND])
def test_what_is_not_turned_stays(middle: list[NodeProto]) -> None:
    assert canonicalise(model(attention(middle))) == []


def test_a_tensor_that_is_given_out_too_keeps_its_values() -> None:
    made = attention([*SCORES, *SOFTMAX, *TO_LEFT])
    for name in ("ot", "pt", "o"):
        made.graph.output.append(helper.make_tensor_value_info(name, FLOAT, None))
    found = model(made)
    canonicalise(found)
    after, before = run(found, FEED), run(made, FEED)
    for name, values in before.items():
        np.testing.assert_allclose(after[name], values, rtol=1e-4, atol=1e-5)
    assert len(analyse(found).attentions) == 1


@pytest.mark.parametrize("middle", [LEARNED, BLEND])
def test_learned_queries_and_a_blend_of_two_softmaxes_are_cores(middle: list[NodeProto]) -> None:
    found = model(attention(middle))
    structure = analyse(found)
    (core,) = structure.attentions
    assert (core.tokens, core.scores.outputs[0].name) == (16, "s" if middle is LEARNED else "s0")
    assert core.context.inputs[0].name == "p"
    assert core.proj is not None
    assert "learned" not in {site.name for site in structure.sites}


def test_a_mask_that_is_made_of_a_product_is_a_mask() -> None:
    (core,) = analyse(model(attention(MASK_OF_A_PRODUCT))).attentions
    assert core.scores.outputs[0].name == "s0"


@pytest.mark.parametrize("form", OTHERS)
def test_what_may_be_above_one_or_mixes_heads_is_none(form: str) -> None:
    assert analyse(model(attention(OTHERS[form]))).attentions == []


def test_a_constant_that_mixes_heads_is_no_learned_query() -> None:
    """W[heads, heads] times the scores of all heads is talking, and its right operand are no keys."""
    nodes = [
        *SCORES[:-1],
        node("Reshape", ["s0", "by_head"], ["flat_scores"]),
        node("MatMul", ["talk", "flat_scores"], ["mixed"]),
        node("Reshape", ["mixed", "square"], ["s"]),
        *SOFTMAX,
        node("MatMul", ["p", "v"], ["o"]),
    ]
    made = attention(nodes)
    more = {"by_head": np.array([0, 2, 256]), "square": np.array([0, 2, 16, 16]), "talk": normal(2, 2, seed=5)}
    made.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in more.items())
    assert analyse(model(made)).attentions == []
