"""How far a detector is trained: up to what selects, through a TopK that has weights after it."""

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from onnx_cases import ints, model_of, values
from test_shapes import n

from gpusq_onnx.errors import NothingMatched, UnsupportedModelError
from gpusq_onnx.graph.dataflow import Dataflow
from gpusq_onnx.graph.sites import find_sites
from gpusq_onnx.runtime.ort import Session
from gpusq_onnx.torchgraph.convert import convert
from gpusq_onnx.torchgraph.prefix import reach, trainable_prefix

HEAD = [n("MatMul", "x w", "h"), n("Relu", "h", "f")]
WEIGHTS = {"w": values(6, 5), "v": values(5, 3), "k": ints(2), "last": ints(-1)}


def test_nothing_cut_gives_the_outputs() -> None:
    model, _ = model_of([*HEAD, n("ArgMax", "f", "best")], WEIGHTS, (4, 6), ["f", "best"])
    assert trainable_prefix(model) == ["f"]


def test_the_end_of_a_detector_is_cut_in_front_of_its_topk() -> None:
    nodes = [*HEAD, n("ReduceMax", "f last", "score", keepdims=0), n("TopK", "score k", "top index"),
             n("Unsqueeze", "index last", "places"), n("GatherND", "f places", "y", batch_dims=1)]  # fmt: skip
    model, _ = model_of(nodes, WEIGHTS, (4, 6), ["y", "top"])
    assert trainable_prefix(model) == ["f", "score"]
    assert set(convert(model).outputs) == {"y", "top"}  # it could be converted; it is just no good to train on


def test_a_weight_that_the_rest_reads_as_well_is_no_end() -> None:
    """The Q/DQ pair's output is made of a trained weight, and is nothing that teacher and student both have."""
    pair = [n("QuantizeLinear", "w s z", "q"), n("DequantizeLinear", "q s z", "d"), n("MatMul", "x d", "f")]
    tail = [n("NonZero", "d", "places"), n("Shape", "places", "count"), n("Reshape", "f count", "y")]
    scale = {"s": np.array(0.1, np.float32), "z": np.array(0, np.int8)}
    model, _ = model_of([*pair, *tail], {**WEIGHTS, **scale}, (4, 6), ["y"])
    assert trainable_prefix(model) == ["f"]


def test_a_topk_with_weights_behind_it_is_passed() -> None:
    nodes = [*HEAD, n("ReduceMax", "f last", "score", keepdims=0), n("TopK", "score k", "top index"),
             n("Unsqueeze", "index last", "places"), n("GatherND", "f places", "chosen", batch_dims=1),
             n("MatMul", "chosen v", "y")]  # fmt: skip
    model, _ = model_of(nodes, WEIGHTS, (4, 6), ["y"])
    assert trainable_prefix(model) == ["y"]
    network = convert(model)
    network(torch.from_numpy(values(3, 4, 6)))["y"].sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_a_transposed_convolution_after_a_topk_has_weights_as_any_other() -> None:
    nodes = [*HEAD, n("ReduceMax", "f last", "score", keepdims=0), n("TopK", "score k", "top index"),
             n("Unsqueeze", "index last", "places"), n("GatherND", "f places", "chosen", batch_dims=1),
             n("Transpose", "chosen", "map", perm=[0, 2, 1]), n("ConvTranspose", "map kernel", "y")]  # fmt: skip
    model, _ = model_of(nodes, WEIGHTS | {"kernel": values(5, 3, 2)}, (4, 6), ["y"])
    assert trainable_prefix(model) == ["y"]


def test_what_lies_behind_an_operator_without_a_row_stays_in_onnx() -> None:
    boxes = [n("NonZero", "f", "places"), n("Gather", "f first", "row", axis=1), n("MatMul", "row v", "side"),
             n("Shape", "places", "count"), n("Reshape", "side count", "y")]  # fmt: skip
    model, _ = model_of([*HEAD, *boxes], {**WEIGHTS, "first": np.array(0)}, (4, 6), ["y"])
    assert trainable_prefix(model) == ["f", "side"]
    assert set(convert(model, outputs=trainable_prefix(model)).initializers.values()) == {"w", "v"}


def test_a_graph_that_selects_before_any_weight_is_refused() -> None:
    nodes = [n("NonZero", "x", "places"), n("Cast", "places", "floats", to=1), n("MatMul", "square floats", "y")]
    model, _ = model_of(nodes, {"square": values(6, 3)}, (4, 6), ["y"])
    with pytest.raises(NothingMatched, match="cannot be converted"):
        trainable_prefix(model)


def test_what_only_a_branch_reads_is_an_end() -> None:
    """An If has no input but its condition: what its branches read is not in its list."""
    sides = {
        f"{name}_branch": helper.make_graph(
            [n(op, "f", name)], name, [], [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)]
        )
        for name, op in (("then", "Neg"), ("else", "Abs"))
    }
    nodes = [
        *HEAD,
        n("ReduceMax", "x", "largest", keepdims=0),
        n("Greater", "largest zero", "c"),
        n("If", "c", "y", **sides),
    ]
    model, _ = model_of(nodes, {**WEIGHTS, "zero": np.array(0, np.float32)}, (4, 6), ["y"])
    assert trainable_prefix(model) == ["f"]


def test_the_first_node_that_stands_in_the_way_is_named() -> None:
    nodes = [n("NonZero", "x", "places"), n("Cast", "places", "floats", to=1), n("MatMul", "square floats", "y")]
    model, _ = model_of(nodes, {"square": values(6, 3)}, (4, 6), ["y"])
    with pytest.raises(NothingMatched) as caught:
        trainable_prefix(model)
    assert "(NonZero)" in str(caught.value.details["where"])
    assert caught.value.details["found"] == "3 of 3 nodes cannot be converted, or come after one"


def test_the_second_outputs_of_norms_and_dropouts_are_trained_through() -> None:
    nodes = [*HEAD, n("LayerNormalization", "f gamma", "norm mean deviation"), n("Dropout", "norm", "same mask"),
             n("Mul", "mean deviation", "both"), n("Add", "same both", "sum"),
             n("Where", "mask sum zero", "y")]  # fmt: skip
    constants = {**WEIGHTS, "gamma": values(5), "zero": np.array(0, np.float32)}
    model, data = model_of(nodes, constants, (4, 6), ["y"])
    assert trainable_prefix(model) == ["y"]
    x = values(3, 4, 6)
    found = convert(model)(torch.from_numpy(x))["y"].detach().numpy()
    np.testing.assert_allclose(found, Session(data, optimize=False).run({"x": x})["y"], 1e-5, 2e-6)


def test_an_output_of_a_node_that_is_not_computed_ends_what_is_trained() -> None:
    pooled = [n("Conv", "x kernel", "c"), n("Relu", "c", "f"), n("MaxPool", "f", "p places", kernel_shape=[2])]
    nodes = [*pooled, n("Cast", "places", "floats", to=1), n("Add", "p floats", "y")]
    model, _ = model_of(nodes, {"kernel": values(5, 4, 1)}, (4, 6), ["y", "places"])
    with pytest.raises(UnsupportedModelError, match="MaxPool cannot be trained through as it is used here") as caught:
        convert(model)
    assert "'MaxPool_p places'" in str(caught.value.details["where"])
    assert "'places'" in str(caught.value.details["found"])
    assert trainable_prefix(model) == ["p"]


def test_a_node_without_a_name_is_named_by_what_it_makes() -> None:
    pooled = n("MaxPool", "x", "p places", kernel_shape=[2])
    pooled.name = ""
    model, _ = model_of([pooled], {}, (4, 6), ["p", "places"])
    with pytest.raises(UnsupportedModelError) as caught:
        convert(model)
    assert "the MaxPool node that makes 'p', opset " in str(caught.value.details["where"])


def test_an_output_without_elements_is_not_compared() -> None:
    empty = [n("Slice", "f from from last", "none")]
    model, _ = model_of([*HEAD, *empty], {**WEIGHTS, "from": ints(0)}, (4, 6), ["f", "none"])
    assert trainable_prefix(model) == ["f"]


def test_what_training_leaves_as_it_is_and_why() -> None:
    """Weights after a node without a row, of an output without elements, and one that the graph returns."""
    nodes = [*HEAD, n("Hardmax", "f", "hard"), n("MatMul", "hard v", "y"),
             n("Slice", "f zero zero one", "none"), n("MatMul", "none u", "z"),
             n("MatMul", "x r", "kept"), n("MatMul", "kept w", "o"), n("Transpose", "r", "turned", perm=[1, 0]),
    ]  # fmt: skip
    constants = {**WEIGHTS, "u": values(5, 5), "r": values(6, 6), "zero": ints(0), "one": ints(1)}
    model, _ = model_of(nodes, constants, (4, 6), ["y", "z", "o", "turned"])
    sites = find_sites(model, Dataflow(model))
    assert {site.name for site in sites} == {"w", "v", "u", "r"}
    found = reach(model, sites)
    assert found.untrained == {
        "v": "it comes after node 'Hardmax_hard' (Hardmax), which is not trained through",
        "u": "it makes no float output that could be compared",
        "r": "an output of the graph is made of it alone: changing it would change that, too",
    }
    assert {"h", "o"} <= found.computed and not {"hard", "y", "z"} & found.computed
    assert set(convert(model, outputs=trainable_prefix(model)).initializers.values()) == {"w"}
