"""Shapes for one image, and what a model costs by the paper's formulas."""

from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto
from small_graphs import FLOAT, HALF, model, node, normal, proto

from gpusq_onnx.errors import UnsupportedModelError
from gpusq_onnx.graph import io
from gpusq_onnx.graph.cost import attention_macs, form_of, site_cost, total_cost
from gpusq_onnx.graph.shapes import infer_shapes
from gpusq_onnx.graph.structure import analyse
from gpusq_onnx.quant.formats import INT8
from gpusq_onnx.quant.schemes import Quantised
from gpusq_onnx.sparsity.patterns import TWO_FOUR

ASSETS = Path(__file__).parents[1] / "assets"
K, N, ROWS = 8, 12, 5


def linear(kind: int = FLOAT, dtype=np.float32, batch="n"):
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Add", ["h", "b"], ["y"])]
    constants = {"w": normal(K, N, dtype=np.float32).astype(dtype), "b": normal(N).astype(dtype)}
    return model(proto(nodes, [("x", kind, [batch, ROWS, K])], [("y", kind, [batch, ROWS, N])], constants))


def test_one_image_or_the_batch_as_declared():
    shapes, types = infer_shapes(linear())
    assert (shapes["x"], shapes["h"], shapes["w"]) == ((1, ROWS, K), (1, ROWS, N), (K, N))
    assert types["h"] == np.float32
    shapes, _ = infer_shapes(linear(), one_image=False)
    assert (shapes["x"], shapes["h"]) == (("n", ROWS, K), ("n", ROWS, N))


def test_shapes_computed_in_the_graph():
    nodes = [
        node("Shape", ["x"], ["s"], start=0, end=1),
        node("Concat", ["s", "rest"], ["t"], axis=0),
        node("Reshape", ["x", "t"], ["y"]),
    ]
    made = proto(nodes, [("x", FLOAT, ["n", 4, 6])], [("y", FLOAT, None)], {"rest": np.array([24])})
    assert infer_shapes(model(made))[0]["y"] == (1, 24)


def test_large_weights_are_not_read(monkeypatch):
    loaded = io.load(ASSETS / "digits_vit.onnx")
    large = [c for c in loaded.constants() if c._values.nbytes >= 1024]
    assert large
    for constant in large:
        monkeypatch.setattr(constant._values, "load", lambda: pytest.fail("a weight was read"))
    assert infer_shapes(loaded)[0]


def test_contradictions_are_refused():
    constants = {"w": np.ones((K, N), np.int64)}
    made = proto([node("MatMul", ["x", "w"], ["y"])], [("x", FLOAT, [5, K])], [("y", FLOAT, None)], constants)
    with pytest.raises(UnsupportedModelError, match="contradict"):
        infer_shapes(model(made))


def dense(site):
    return form_of(site, None)


@pytest.mark.parametrize(
    ("kind", "dtype", "quantised", "sparse", "bits", "stored"),
    [
        (FLOAT, np.float32, False, False, 32, 32),
        (HALF, np.float16, False, False, 16, 16),
        (HALF, np.float16, False, True, 16, 9),
        (TensorProto.BFLOAT16, ml_dtypes.bfloat16, False, False, 16, 16),
        (FLOAT, np.float32, True, False, 8, 8),
        (FLOAT, np.float32, True, True, 8, 5),
    ],
)
def test_the_cost_of_a_linear(kind, dtype, quantised, sparse, bits, stored):
    structure = analyse(linear(kind, dtype))
    (site,) = structure.sites
    planned = Quantised(INT8, INT8) if quantised else None
    cost = site_cost(site, structure, form_of(site, TWO_FOUR if sparse else None, planned))
    assert cost.parameters == K * N
    assert cost.dense_macs == ROWS * K * N
    assert cost.bit_operations == ROWS * K * N * bits * bits / (2 if sparse else 1)
    assert cost.packed_bytes == K * N * stored / 8


@pytest.mark.parametrize(
    ("kind", "dtype", "size"), [(FLOAT, np.float32, 4), (TensorProto.BFLOAT16, ml_dtypes.bfloat16, 2)]
)
def test_totals_count_biases_as_stored(kind, dtype, size):
    loaded = linear(kind, dtype)
    total = total_cost(loaded, analyse(loaded), dense)
    assert total["parameters"] == K * N + N
    assert total["packed_bytes"] == (K * N + N) * size


def test_a_grouped_conv():
    nodes = [node("Conv", ["x", "w"], ["y"], group=2, strides=[2, 2], pads=[1, 1, 1, 1])]
    loaded = model(proto(nodes, [("x", FLOAT, ["n", 8, 16, 16])], [("y", FLOAT, None)], {"w": normal(6, 4, 3, 3)}))
    structure = analyse(loaded)
    assert site_cost(structure.sites[0], structure, dense(structure.sites[0])).dense_macs == 6 * 8 * 8 * 4 * 9


@pytest.mark.parametrize(("group", "out"), [(1, 8), (2, 4)])
def test_a_transposed_conv_multiplies_at_each_position_of_its_input(group: int, out: int):
    nodes = [node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], group=group)]
    weight = normal(64, out, 2, 2)
    loaded = model(proto(nodes, [("x", FLOAT, ["n", 64, 16, 16])], [("y", FLOAT, None)], {"w": weight}))
    structure = analyse(loaded)
    (site,) = structure.sites
    assert site_cost(site, structure, dense(site)).dense_macs == 16 * 16 * 64 * out * 4


def test_the_positions_of_quantised_data_are_those_of_what_was_quantised():
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        node("ConvTranspose", ["d", "w"], ["y"], strides=[2, 2]),
    ]
    constants = {"w": normal(64, 8, 2, 2), "s": np.float32(0.1), "z": np.int8(0)}
    loaded = model(proto(nodes, [("x", FLOAT, ["n", 64, 16, 16])], [("y", FLOAT, None)], constants))
    structure = analyse(loaded)
    seen = replace(structure, shapes={name: shape for name, shape in structure.shapes.items() if name != "d"})
    (site,) = structure.sites
    assert site_cost(site, seen, dense(site)).dense_macs == 16 * 16 * 64 * 8 * 4


def test_a_fixed_batch_is_so_many_images():
    costs = [total_cost(loaded, analyse(loaded), dense) for loaded in (linear(batch="n"), linear(batch=4))]
    assert costs[0] == costs[1]
    cores = []
    for batch in ("n", 4):
        nodes = [
            node("Transpose", ["x"], ["k"], perm=[0, 2, 1]),
            node("MatMul", ["x", "k"], ["s"]),
            node("Softmax", ["s"], ["p"]),
            node("MatMul", ["p", "x"], ["y"]),
        ]
        loaded = model(proto(nodes, [("x", FLOAT, [batch, 5, 8])], [("y", FLOAT, None)]))
        structure = analyse(loaded)
        cores.append([attention_macs(attention, structure) for attention in structure.attentions])
    assert cores == [[2 * 5 * 5 * 8]] * 2


def test_a_picture_without_a_batch_is_one_image():
    """Its first axis is a colour or a row, which no output keeps."""
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("ReduceMean", ["h", "first"], ["y"], keepdims=0)]
    constants = {"w": normal(K, N), "first": np.array([0])}
    loaded = model(proto(nodes, [("x", FLOAT, [3, K])], [("y", FLOAT, None)], constants))
    assert total_cost(loaded, analyse(loaded), dense)["dense_macs"] == 3 * K * N


def test_a_quantised_weight_that_others_read_keeps_its_floats():
    scale, zero = np.full(N, 0.1, np.float32), np.zeros(N, np.int8)
    nodes = [
        node("QuantizeLinear", ["w", "s", "z"], ["q"], axis=1),
        node("DequantizeLinear", ["q", "s", "z"], ["d"], axis=1),
        node("MatMul", ["x", "d"], ["y"]),
        node("Gather", ["w", "i"], ["e"]),
    ]
    outputs = [("y", FLOAT, None), ("e", FLOAT, None)]
    constants = {"w": normal(K, N), "s": scale, "z": zero, "i": np.array([0])}
    for read, bits in ((nodes, 32), (nodes[:-1], 8)):
        loaded = model(proto(read, [("x", FLOAT, [1, K])], outputs[: len(read) - 2], constants))
        structure = analyse(loaded)
        (site,) = structure.sites
        cost = site_cost(site, structure, dense(site))
        assert (cost.packed_bytes, cost.bit_operations) == (K * N * bits / 8, K * N * 8 * 32)


def test_a_shared_weight_is_stored_once_and_used_twice():
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("MatMul", ["h", "w"], ["y"])]
    loaded = model(proto(nodes, [("x", FLOAT, [1, K])], [("y", FLOAT, None)], {"w": normal(K, K)}))
    total = total_cost(loaded, analyse(loaded), dense)
    assert (total["parameters"], total["dense_macs"], total["packed_bytes"]) == (K * K, 2 * K * K, 4 * K * K)
    nodes[1] = node("Gemm", ["h", "w"], ["y"], transB=1)
    tied = model(proto(nodes, [("x", FLOAT, [1, K])], [("y", FLOAT, None)], {"w": normal(K, K)}))
    assert len(analyse(tied).sites) == 2
    assert total_cost(tied, analyse(tied), dense) == total


def test_the_embedded_model_costs_the_same_from_both_exporters():
    totals = []
    for name in ("digits_vit.onnx", "digits_vit_legacy17.onnx"):
        loaded = io.load(ASSETS / name)
        totals.append(total_cost(loaded, analyse(loaded), dense))
    assert totals[0]["dense_macs"] == totals[1]["dense_macs"]
    assert abs(totals[0]["parameters"] - totals[1]["parameters"]) < 20  # scalars of the graph
