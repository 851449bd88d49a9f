"""Equalising factors move through the graph and change nothing that it computes in floating point."""

import numpy as np
import pytest
from small_graphs import FLOAT, HALF, model, node, normal, proto, rng, run

from gpusq_onnx.graph import invariants
from gpusq_onnx.graph.edits import Names
from gpusq_onnx.graph.qdq.rescale import (
    foldable_norm,
    offset_input,
    own_bias,
    rescale_input,
    rescale_output,
    shift_bias,
)
from gpusq_onnx.graph.sites import find_sites

K, N = 8, 6
X = [("x", FLOAT, [2, 5, K])]
Y = [("y", FLOAT, None)]
NORM = {"g": normal(K, seed=5), "c": normal(K, seed=6)}
WEIGHTS = {"w1": normal(K, N, seed=1), "w2": normal(K, N, seed=2), "b": normal(N, seed=3)}
LAYER_NORM = node("LayerNormalization", ["x", "g", "c"], ["n"])


def factors(count: int):
    return np.exp(rng(9).uniform(-2, 2, count)).astype(np.float32)


def by_name(loaded):
    return {site.weight.name: site for site in find_sites(loaded)}


def same(made, loaded, feed, tolerance=1e-5):
    invariants.check(loaded, "rescaling")
    before, after = run(made, feed), run(loaded, feed)
    for name, value in before.items():
        scale = float(np.abs(value).max())
        np.testing.assert_allclose(after[name], value, atol=tolerance * scale, rtol=0)


def q_and_k(*more, outputs=(), **constants):
    nodes = [LAYER_NORM, node("MatMul", ["n", "w1"], ["q"]), node("MatMul", ["n", "w2"], ["k"]), *more]
    return proto(nodes, X, [("q", FLOAT, None), ("k", FLOAT, None), *outputs], WEIGHTS | NORM | constants)


def test_a_layer_norm_takes_the_factors_of_all_its_readers():
    made = q_and_k()
    loaded = model(made)
    sites = list(by_name(loaded).values())
    tensor = sites[0].activation
    assert foldable_norm(tensor, sites) is tensor.inputs[0]
    old = {name: site.read().copy() for name, site in by_name(loaded).items()}
    s = factors(K)
    assert rescale_input(loaded, tensor, sites, s, Names(loaded)) is tensor
    assert len(loaded.graph.nodes) == 3
    for name, site in by_name(loaded).items():
        np.testing.assert_allclose(site.read(), old[name] * s, rtol=1e-6)
    same(made, loaded, {"x": normal(2, 5, K)})


CANNOT_FOLD = {
    "another reader": q_and_k(node("Relu", ["n"], ["r"]), outputs=[("r", FLOAT, None)]),
    "the norm's output is the graph's": q_and_k(outputs=[("n", FLOAT, [2, 5, K])]),
    "parameters shared with another norm": q_and_k(
        node("LayerNormalization", ["x", "g"], ["n2"]), outputs=[("n2", FLOAT, None)]
    ),
}


@pytest.mark.parametrize("case", list(CANNOT_FOLD))
def test_what_others_see_is_divided_in_a_node_of_its_own(case: str):
    made = CANNOT_FOLD[case]
    loaded = model(made)
    sites = list(by_name(loaded).values())
    scaled = rescale_input(loaded, sites[0].activation, sites, factors(K), Names(loaded))
    assert scaled.name == "n_equalised"
    assert [n.op for n in loaded.graph.nodes].count("Mul") == 1
    same(made, loaded, {"x": normal(2, 5, K)})


def test_one_of_two_readers():
    made = q_and_k()
    loaded = model(made)
    site = by_name(loaded)["w1"]
    assert foldable_norm(site.activation, [site]) is None
    rescale_input(loaded, site.activation, [site], factors(K), Names(loaded))
    same(made, loaded, {"x": normal(2, 5, K)})


def test_a_tied_weight_whose_readers_read_different_tensors():
    nodes = [LAYER_NORM, node("MatMul", ["n", "w1"], ["q"]), node("MatMul", ["x", "w1"], ["k"])]
    made = proto(nodes, X, [("q", FLOAT, None), ("k", FLOAT, None)], WEIGHTS | NORM)
    loaded = model(made)
    (site,) = find_sites(loaded)
    before = site.read()
    rescale_input(loaded, site.activation, [site], factors(K), Names(loaded))
    np.testing.assert_array_equal(site.read(), before * factors(K))
    same(made, loaded, {"x": normal(2, 5, K)})


def test_a_half_weight_behind_a_cast():
    nodes = [node("Cast", ["w"], ["m"], to=FLOAT), node("MatMul", ["x", "m"], ["y"])]
    made = proto(nodes, X, Y, {"w": WEIGHTS["w1"].astype(np.float16)})
    loaded = model(made)
    (site,) = find_sites(loaded)
    rescale_input(loaded, site.activation, [site], factors(K), Names(loaded))
    rescale_output(loaded, site, factors(N), Names(loaded))
    assert site.dtype == "float16"
    same(made, loaded, {"x": normal(2, 5, K)}, tolerance=2e-3)


OUTPUTS = {
    "no bias": [node("MatMul", ["x", "w1"], ["y"])],
    "bias": [node("MatMul", ["x", "w1"], ["h"]), node("Add", ["b", "h"], ["y"])],
    "Gemm": [node("Gemm", ["r", "w1", "b"], ["y"])],
    "Gemm without bias": [node("Gemm", ["r", "w1"], ["y"])],
    "Gemm with a bias after Identity": [node("Identity", ["b"], ["i"]), node("Gemm", ["r", "w1", "i"], ["y"])],
    "bias that another reads": [
        node("Add", ["r", "b8"], ["u"]),
        node("MatMul", ["x", "w1"], ["h"]),
        node("Add", ["h", "d"], ["y"]),
    ],
    "read by two": [node("MatMul", ["x", "w1"], ["h"]), node("Add", ["h", "b"], ["s"]), node("Mul", ["s", "s"], ["y"])],
}


@pytest.mark.parametrize("case", list(OUTPUTS))
def test_rows_are_divided_and_multiplied_back(case: str):
    inputs = [*X, ("r", FLOAT, [5, K])]
    constants = WEIGHTS | {"b8": normal(K), "d": normal(5, N)}
    made = proto(OUTPUTS[case], inputs, Y, constants)
    loaded = model(made)
    (site,) = find_sites(loaded)
    name = site.output.name
    between = rescale_output(loaded, site, factors(N), Names(loaded))
    assert between.name == f"{name}_equalised"
    same(made, loaded, {"x": normal(2, 5, K), "r": normal(5, K)})


def test_an_output_that_is_an_input_gets_two_nodes_with_two_names():
    nodes = [node("MatMul", ["x", "w1"], ["h"]), node("MatMul", ["h", "v"], ["y"])]
    made = proto(nodes, X, Y, WEIGHTS | {"v": normal(N, 4)})
    loaded = model(made)
    first, second = find_sites(loaded)
    rescale_input(loaded, second.activation, [second], factors(N), Names(loaded))
    rescale_output(loaded, first, factors(N), Names(loaded))
    assert [n.op for n in loaded.graph.nodes] == ["MatMul", "Mul", "Mul", "MatMul"]
    same(made, loaded, {"x": normal(2, 5, K)})


def test_zeros_stay_zeros():
    loaded = model(q_and_k())
    site = by_name(loaded)["w1"]
    w = site.read().copy()
    w[:, ::2] = 0
    site.write(w)
    rescale_input(loaded, site.activation, [site], factors(K), Names(loaded))
    rescale_output(loaded, site, factors(N), Names(loaded))
    assert not site.read()[:, ::2].any()


def test_biases_are_shifted_in_their_own_type_and_only_private_ones():
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Add", ["h", "b"], ["y"])]
    constants = {"w": normal(K, N, dtype=np.float16), "b": normal(N, dtype=np.float16)}
    loaded = model(proto(nodes, [("x", HALF, [5, K])], [("y", HALF, None)], constants))
    (site,) = find_sites(loaded)
    bias = own_bias(site)
    assert bias is not None
    shift_bias(bias, np.ones(N, np.float32))
    assert bias.values.dtype == np.float16
    np.testing.assert_allclose(bias.values, constants["b"] + 1, atol=2e-3)
    nodes.append(node("Relu", ["b"], ["z"]))
    shared = model(proto(nodes, [("x", HALF, [5, K])], [("y", HALF, None), ("z", HALF, None)], constants))
    assert own_bias(find_sites(shared)[0]) is None


OFFSETS = {
    "MatMul": [node("MatMul", ["x", "w1"], ["h"]), node("Add", ["b", "h"], ["y"])],
    "Gemm": [node("Gemm", ["r", "w1", "b"], ["y"])],
    "another Add follows": [
        node("MatMul", ["x", "w1"], ["h"]),
        node("Add", ["h", "b"], ["u"]),
        node("ReduceSum", ["x"], ["s"]),
        node("Add", ["u", "s"], ["y"]),
    ],
}


@pytest.mark.parametrize("case", list(OFFSETS))
def test_the_middle_of_an_input_goes_into_the_bias(case: str):
    nodes, constants = OFFSETS[case], {name: WEIGHTS[name] for name in ("w1", "b")}
    inputs = [("r", FLOAT, [10, K])] if case == "Gemm" else X
    made = proto(nodes, inputs, Y, constants)
    loaded = model(made)
    (site,) = find_sites(loaded)
    source = site.activation
    assert offset_input(loaded, source, [site], 1.5, Names(loaded)) is site.activation
    made_by = site.activation.inputs[0]
    assert (made_by.op, made_by.inputs[0]) == ("Add", source)
    same(made, loaded, {inputs[0][0]: normal(*inputs[0][2])})


def test_the_middle_of_an_input_goes_into_the_biases_of_all_who_read_it():
    nodes = [
        node("MatMul", ["x", "w1"], ["q0"]),
        node("Add", ["q0", "b"], ["q"]),
        node("MatMul", ["x", "w2"], ["k0"]),
        node("Add", ["k0", "b2"], ["k"]),
    ]
    outputs = [("q", FLOAT, None), ("k", FLOAT, None)]
    made = proto(nodes, X, outputs, WEIGHTS | {"b2": normal(N, seed=4)})
    loaded = model(made)
    sites = find_sites(loaded)
    offset_input(loaded, sites[0].activation, sites, -0.75, Names(loaded))
    assert [n.op for n in loaded.graph.nodes].count("Add") == 3
    same(made, loaded, {"x": normal(2, 5, K)})
