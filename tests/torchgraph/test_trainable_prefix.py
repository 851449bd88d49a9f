"""How far a detector is trained: up to what selects, through a TopK that has weights after it."""

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from onnx_cases import ints, model_of, values
from test_shapes import n

from gpusq_onnx.errors import NothingMatched
from gpusq_onnx.torchgraph.convert import convert
from gpusq_onnx.torchgraph.prefix import trainable_prefix

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
