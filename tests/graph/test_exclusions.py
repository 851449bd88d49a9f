"""What is left out, and why: a model with one site for each reason; every other weight is treated, named or not."""

import numpy as np
import pytest
from small_graphs import FLOAT, model, node, normal, proto

from gpusq_onnx.graph.exclusions import EXCLUSIONS, excluded
from gpusq_onnx.graph.structure import analyse

C = 32


def _sites():
    weights = {
        "stem": normal(C, 3, 3, 3),
        "plain": normal(C, C, 1, 1),
        "depthwise": normal(C, 1, 3, 3),
        "joined": normal(C, 2 * C, 1, 1),
        "mixer": normal(4, 4, 1, 1),
        "window": normal(4, 4, 3, 3),
        "up": normal(C, C, 2, 2),
        "narrow": normal(8, C, 1, 1),
        "unnamed": normal(C, 64),
        "after": normal(8, 64),
        "head": normal(64, 100),
        "queries": normal(100, C),
        "table": normal(C, C),
    }
    nodes = [
        node("Conv", ["x", "stem"], ["a"], pads=[1, 1, 1, 1]),
        node("Conv", ["a", "plain"], ["b"]),
        node("Conv", ["b", "depthwise"], ["c"], group=C, pads=[1, 1, 1, 1]),
        node("Concat", ["b", "c"], ["bc"], axis=1),
        node("Conv", ["bc", "joined"], ["d"]),
        node("ConvTranspose", ["d", "up"], ["e"], strides=[2, 2]),
        node("Conv", ["e", "narrow"], ["f"]),
        node("Split", ["f"], ["g", "h"], axis=1, num_outputs=2),
        node("Conv", ["g", "window"], ["w"], pads=[1, 1, 1, 1]),
        node("Conv", ["w", "mixer"], ["i"]),
        node("Concat", ["i", "h"], ["j"], axis=1),
        node("ReduceMean", ["j", "spatial"], ["k"], keepdims=0),
        node("MatMul", ["k", "after"], ["unused"]),
        node("ReduceMean", ["e", "spatial"], ["t"], keepdims=0),
        node("MatMul", ["t", "unnamed"], ["u"]),
        node("Relu", ["u"], ["v"]),
        node("MatMul", ["v", "head"], ["y"]),
        node("MatMul", ["queries", "table"], ["q"]),
        node("ReduceMax", ["q"], ["z"], keepdims=0),
    ]
    outputs = [("y", FLOAT, None), ("unused", FLOAT, None), ("z", FLOAT, None)]
    made = proto(nodes, [("x", FLOAT, ["n", 3, 8, 8])], outputs, weights | {"spatial": np.array([2, 3])})
    return {site.name: site for site in analyse(model(made)).sites}


SITES = _sites()
QUANTISED = {"plain", "joined", "up", "unnamed"}
REASONS = {
    "stem": "first layer", "depthwise": "depthwise", "mixer": "reduces over 4",
    "window": "4 input channel(s): below 16", "narrow": "8 outputs",
    "after": "head", "head": "head", "table": "its input is constant",
}  # fmt: skip


def test_every_weight_without_a_reason_is_quantised():
    assert {name for name, site in SITES.items() if excluded(site, "quantise") is None} == QUANTISED
    for name, reason in REASONS.items():
        assert reason in str(excluded(SITES[name], "quantise")), name


def test_pruning_keeps_what_has_sparse_kernels():
    assert {name for name, site in SITES.items() if excluded(site, "prune") is None} == {"plain", "joined", "unnamed"}


@pytest.mark.parametrize(("name", "gives_way"), [("head", True), ("stem", False), ("mixer", False), ("table", False)])
def test_naming_a_site_overrides_what_is_not_firm(name: str, gives_way: bool):
    assert (excluded(SITES[name], "quantise", named=True) is None) == gives_way


def test_the_smallest_side_is_an_option():
    assert excluded(SITES["mixer"], "quantise", smallest=4) is None


def test_rows_have_names_of_their_own():
    assert len({row.name for row in EXCLUSIONS}) == len(EXCLUSIONS)
