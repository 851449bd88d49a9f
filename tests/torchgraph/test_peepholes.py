"""What is put together again, what is left alone, and that both compute the same."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from onnx import NodeProto
from onnx_cases import Array, ints, model_of, values
from test_shapes import calls, held, n
from torch.nn import functional

from gpusq_onnx.torchgraph import functions
from gpusq_onnx.torchgraph.convert import convert

HALF, ONE = np.array(0.5, np.float32), np.array(1.0, np.float32)
ROOT, INVERSE = np.array(math.sqrt(2), np.float32), np.array(math.sqrt(0.5), np.float32)

GELUS: dict[str, Sequence[NodeProto]] = {
    "torch": [n("Div", "x root", "d"), n("Erf", "d", "e"), n("Add", "e one", "p"), n("Mul", "x p", "m"),
              n("Mul", "m half", "y")],
    "half first": [n("Mul", "x inverse", "d"), n("Erf", "d", "e"), n("Add", "one e", "p"), n("Mul", "x half", "h"),
                   n("Mul", "h p", "y")],
    "half inside": [n("Mul", "inverse x", "d"), n("Erf", "d", "e"), n("Add", "e one", "p"), n("Mul", "p half", "h"),
                    n("Mul", "x h", "y")],
}  # fmt: skip
NUMBERS = {"root": ROOT, "one": ONE, "half": HALF, "inverse": INVERSE}


@pytest.mark.parametrize("form", GELUS)
def test_every_form_of_gelu(form: str) -> None:
    network = held(GELUS[form], NUMBERS)
    assert calls(network, functional.gelu) == 1
    assert calls(network, torch.erf) == 0


def test_what_only_looks_like_gelu_stays() -> None:
    other = [*GELUS["torch"][:3], n("Mul", "x p", "m"), n("Mul", "m one3", "y")]
    network = held(other, {**NUMBERS, "one3": np.array(0.3, np.float32)})
    assert calls(network, torch.erf) == 1


def test_a_tapped_inner_tensor_keeps_the_pieces() -> None:
    model, _ = model_of(GELUS["torch"], NUMBERS, (4, 6), ["y"])
    assert calls(convert(model), torch.erf) == 0
    tapped = convert(model, taps=["e"])
    assert calls(tapped, torch.erf) == 1
    x = torch.from_numpy(values(2, 4, 6))
    torch.testing.assert_close(tapped(x)["e"], torch.erf(x / math.sqrt(2)))


def norm(square: str) -> list[NodeProto]:
    squared = n("Pow", "c two", "s") if square == "Pow" else n("Mul", "c c", "s")
    return [
        n("ReduceMean", "x last", "mean"), n("Sub", "x mean", "c"), squared, n("ReduceMean", "s last", "v"),
        n("Add", "v eps", "e"), n("Sqrt", "e", "r"), n("Div", "c r", "z"), n("Mul", "z w", "m"), n("Add", "m b", "y"),
    ]  # fmt: skip


NORM = {"last": ints(-1), "two": np.array(2, np.float32), "eps": np.array(1e-6, np.float32)}
AFFINE = {"w": values(6), "b": values(6, seed=1)}


@pytest.mark.parametrize("square", ["Pow", "Mul"])
def test_layer_norm(square: str) -> None:
    network = held(norm(square), {**NORM, **AFFINE}, tolerance=1e-5)
    assert calls(network, functional.layer_norm) == 1
    (node,) = (node for node in network.body.graph.nodes if node.target is functional.layer_norm)
    assert len(list(network.body.graph.nodes)) == 5
    assert node.args[1] == (6,)


def test_layer_norm_whose_mean_somebody_reads_stays() -> None:
    network = held([*norm("Pow")[:-1], n("Add", "m mean", "y")], {**NORM, **AFFINE}, tolerance=1e-5)
    assert calls(network, functional.layer_norm) == 0


def attention(mask: bool, quantised: bool = False) -> tuple[list[NodeProto], dict[str, Array]]:
    constants = {"split": ints(0, 4, 3, 2, 3), "s": np.array(0.7, np.float32), "scale": np.array(0.05, np.float32),
                 "zero": np.array(0, np.int8), "mask": values(1, 2, 4, 4), "i0": np.array(0), "i1": np.array(1),
                 "i2": np.array(2), "w": values(6, 18)}  # fmt: skip
    probabilities = "pq" if quantised else "p"
    nodes = [
        n("MatMul", "x w", "qkv"), n("Reshape", "qkv split", "cut"),
        n("Transpose", "cut", "turned", perm=[2, 0, 3, 1, 4]),
        n("Gather", "turned i0", "q"), n("Gather", "turned i1", "k"), n("Gather", "turned i2", "v"),
        n("Mul", "q s", "qs"), n("Transpose", "k", "kt", perm=[0, 1, 3, 2]), n("Mul", "kt s", "ks"),
        n("MatMul", "qs ks", "raw"), n("Add", "raw mask", "scores"),
        n("Softmax", "scores" if mask else "raw", "p"),
        n("QuantizeLinear", "p scale zero", "codes"), n("DequantizeLinear", "codes scale zero", "pq"),
        n("MatMul", f"{probabilities} v", "y"),
    ]  # fmt: skip
    return nodes, constants


@pytest.mark.parametrize("mask", [False, True])
def test_attention(mask: bool) -> None:
    network = held(*attention(mask), tolerance=1e-5)
    assert calls(network, functions.attention) == 1
    assert calls(network, torch.softmax) == 0
    assert calls(network, torch.unbind) == 1
    (node,) = (node for node in network.body.graph.nodes if node.target is functions.attention)
    assert node.args[-1] == pytest.approx(0.49)


def test_attention_with_a_quantised_softmax_stays() -> None:
    network = held(*attention(True, quantised=True), tolerance=0.2)
    assert calls(network, functions.attention) == 0
    assert len(network.quantisers) == 1


def test_attention_with_tapped_scores_stays() -> None:
    nodes, constants = attention(True)
    model, _ = model_of(nodes, constants, (4, 6), ["y"])
    assert calls(convert(model, taps=["scores"]), torch.softmax) == 1
    assert calls(convert(model, taps=["p"]), torch.softmax) == 1
    assert calls(convert(model, taps=["q"]), torch.softmax) == 0


def test_attention_with_a_mask_that_is_learned_and_made_from_data_stays() -> None:
    nodes, constants = attention(True)
    at = next(index for index, node in enumerate(nodes) if node.op_type == "Add")
    nodes[at : at + 1] = [n("MatMul", "q table", "mask_of_q"), n("Add", "raw mask_of_q", "scores")]
    network = held(nodes, {**constants, "table": values(3, 4)}, tolerance=1e-5)
    assert calls(network, functions.attention) == 0


@pytest.mark.parametrize("first", ["bias", "product"])
def test_linear(first: str) -> None:
    add = n("Add", "b p" if first == "bias" else "p b", "y")
    network = held([n("MatMul", "x w", "p"), add], {"w": values(6, 5), "b": values(5)}, tolerance=1e-5)
    assert calls(network, functional.linear) == 1
    assert calls(network, torch.matmul) == 0


def test_a_linear_with_a_transposed_weight_reads_it_as_it_is_stored() -> None:
    nodes = [n("Transpose", "w", "wt", perm=[1, 0]), n("MatMul", "x wt", "p"), n("Add", "p b", "y")]
    network = held(nodes, {"w": values(5, 6), "b": values(5)}, tolerance=1e-5)
    assert calls(network, functional.linear) == 1
    assert calls(network, torch.permute) + calls(network, torch.t) == 0


def test_slices_that_tile_an_axis_become_one_split_and_a_swap_becomes_a_roll() -> None:
    cut = [n("Slice", f"x {a} {b} axis", f"part{a}") for a, b in (("zero", "two"), ("two", "end"))]
    swap = n("Concat", "parttwo partzero", "y", axis=1)
    constants = {"zero": ints(0), "two": ints(1), "end": ints(2**62), "axis": ints(1)}
    network = held([*cut, swap], constants)
    assert calls(network, torch.roll) == 1
    network = held([*cut, n("Concat", "partzero parttwo", "joined", axis=1), n("Relu", "joined", "y")], constants)
    assert calls(network, torch.split) == 1
    gap = [n("Slice", "x zero two axis", "a"), n("Slice", "x two end axis", "b"), n("Concat", "b a", "y", axis=1)]
    assert calls(held(gap, {**constants, "two": ints(2), "zero": ints(1)}), torch.split) == 0
