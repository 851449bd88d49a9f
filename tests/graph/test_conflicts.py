"""Weights that must not be changed for one reader's sake, and constants that are no Linear's weight."""

import numpy as np
import pytest
from onnx import helper
from small_graphs import FLOAT, model, node, normal, proto

from gpusq_onnx.graph.sites import find_sites

K, N = 8, 12
W = normal(K, N, seed=1)

CONFLICTS = {
    "tied along different axes": (
        [node("MatMul", ["x", "w"], ["h"]), node("Gemm", ["g", "w"], ["y"], transB=1)],
        {"w": normal(K, K)},
        "reduce along different axes",
    ),
    "also read by Gather": (
        [node("Gather", ["w", "ids"], ["h"]), node("Gemm", ["g", "w"], ["y"], transB=1)],
        {"w": normal(K, K), "ids": np.array([0, 1])},
        "also read by Gather",
    ),
    "Gather after the Transpose": (
        [
            node("Transpose", ["w"], ["t"], perm=[1, 0]),
            node("Gather", ["t", "ids"], ["h"]),
            node("Gemm", ["g", "t"], ["y"]),
        ],
        {"w": normal(K, K), "ids": np.array([0, 1])},
        "also read by Gather",
    ),
    "constant on the left": (
        [node("MatMul", ["w", "g"], ["h"]), node("Relu", ["h"], ["y"])],
        {"w": normal(6, 5)},
        "left operand",
    ),
    "constant input": (
        [node("MatMul", ["c", "w"], ["h"]), node("Add", ["g", "h"], ["y"])],
        {"w": normal(K, K), "c": normal(5, K)},
        "its input is constant",
    ),
    "parts along the reduction axis": (
        [node("Split", ["w"], ["a", "b"], axis=0, num_outputs=2), node("MatMul", ["g", "a"], ["y"])],
        {"w": normal(2 * K, N)},
        "different parts along the reduction axis",
    ),
    "parts along the reduction axis, after Transpose": (
        [
            node("Transpose", ["w"], ["t"], perm=[1, 0]),
            node("Split", ["t"], ["a", "b"], axis=0, num_outputs=2),
            node("MatMul", ["g", "a"], ["y"]),
        ],
        {"w": normal(N, 2 * K)},
        "different parts along the reduction axis",
    ),
    "Gemm with alpha": (
        [node("Gemm", ["g", "w"], ["y"], alpha=0.5)],
        {"w": normal(K, N)},
        "alpha",
    ),
    "Gemm with transA": (
        [node("Gemm", ["g", "w"], ["y"], transA=1)],
        {"w": normal(5, N)},
        "transA",
    ),
}


@pytest.mark.parametrize("case", list(CONFLICTS))
def test_weights_that_must_not_change_for_one_reader_say_so(case: str):
    nodes, constants, reason = CONFLICTS[case]
    made = proto(nodes, [("g", FLOAT, [5, K])], [("y", FLOAT, None)], constants)
    made.graph.input.append(helper.make_tensor_value_info("x", FLOAT, [5, K]))
    sites = [s for s in find_sites(model(made)) if s.weight.name == "w"]
    assert sites
    found = [[*site.conflicts, *site.unfit] for site in sites]
    assert all(any(reason in text for text in each) for each in found), found


def test_a_weight_that_is_an_output_is_not_touched():
    outputs = [("y", FLOAT, [5, N]), ("w", FLOAT, [K, N])]
    made = proto([node("MatMul", ["x", "w"], ["y"])], [("x", FLOAT, [5, K])], outputs, {"w": W})
    (site,) = find_sites(model(made))
    assert "the graph's caller" in site.conflicts[0]


@pytest.mark.parametrize("shape", [(3, K, N), (K,)])
def test_batches_of_matrices_and_vectors_are_no_linears(shape):
    made = proto(
        [node("MatMul", ["x", "w"], ["y"])], [("x", FLOAT, [3, 5, K])], [("y", FLOAT, None)], {"w": normal(*shape)}
    )
    assert find_sites(model(made)) == []
