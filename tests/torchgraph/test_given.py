"""Inner tensors handed in: blocks by themselves, on the same parameters."""

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx_cases import model_of, values
from test_shapes import n

from gpusq_onnx.errors import UsageError
from gpusq_onnx.graph import io
from gpusq_onnx.graph.structure import analyse
from gpusq_onnx.torchgraph.convert import convert
from tests.graph import small_graphs
from tests.graph.small_graphs import FLOAT, proto

ASSETS = Path(__file__).parents[1] / "assets"
MODELS = ["digits_vit.onnx", "digits_vit_legacy17.onnx"]


@pytest.mark.parametrize("asset", MODELS)
def test_blocks_fed_with_what_the_graph_computes_give_what_the_graph_gives(asset: str) -> None:
    model = io.load(ASSETS / asset)
    ends = [block.output for block in analyse(model).blocks]
    whole, apart = convert(model, taps=ends), convert(model, taps=ends, given=ends)
    assert apart.inputs == (*whole.inputs, *ends)
    x = torch.randn(3, 3, 32, 32)
    expected = whole(x)
    found = apart(x, *(expected[name] for name in ends))
    for name in whole.outputs:
        torch.testing.assert_close(found[name], expected[name])


@pytest.mark.parametrize("asset", MODELS)
def test_no_gradient_crosses_a_given_tensor_and_parameters_are_shared(asset: str) -> None:
    model = io.load(ASSETS / asset)
    ends = [block.output for block in analyse(model).blocks]
    whole, apart = convert(model, taps=ends), convert(model, taps=ends, given=ends)
    apart.share(whole)
    assert {id(p) for p in apart.parameters()} == {id(p) for p in whole.parameters()}
    x = torch.randn(2, 3, 32, 32)
    features = {name: value.detach() for name, value in whole(x).items()}
    apart(x, *(features[name] for name in ends))[ends[0]].sum().backward()
    alone = {name for name, p in whole.named_parameters() if p.grad is not None}
    whole.zero_grad()
    apart(x, *(features[name] for name in ends))[ends[1]].sum().backward()
    second = {name for name, p in whole.named_parameters() if p.grad is not None}
    assert alone
    assert second
    assert not alone & second


@pytest.mark.parametrize("asset", MODELS)
def test_tensors_are_taken_in_the_callers_order(asset: str) -> None:
    model = io.load(ASSETS / asset)
    ends = [block.output for block in analyse(model).blocks][::-1]
    whole, apart = convert(model, taps=ends), convert(model, taps=ends, given=ends)
    x = torch.randn(2, 3, 32, 32)
    features = whole(x)
    others = [torch.zeros_like(features[name]) for name in ends[1:]]
    assert apart.inputs[1:] == tuple(ends)
    logits = whole.outputs[0]  # after the last block, which is the first one given
    torch.testing.assert_close(apart(x, features[ends[0]], *others)[logits], features[logits], rtol=0, atol=1e-5)


def test_names_that_torch_gives_its_own_nodes() -> None:
    """As dynamo names tensors: `add`, `add_1`; torch.fx calls the nodes of a converted graph the same, shifted."""
    ends = ["add", "add_1", "add_2"]
    nodes = [n("Add", "x w", "add"), n("Add", "add v", "add_1"), n("Add", "add_1 u", "add_2")]
    constants = {name: values(6) for name in "wvu"}
    model, _ = model_of([*nodes, n("MatMul", "add_2 m", "y")], {**constants, "m": values(6, 5)}, (4, 6), ["y"])
    apart = convert(model, taps=ends, given=ends)
    found = apart(torch.zeros(4, 6), *(torch.full((4, 6), float(size)) for size in (10, 200, 3000)))
    torch.testing.assert_close(found["add_1"], 10 + torch.from_numpy(constants["v"]).expand(4, 6))
    torch.testing.assert_close(found["add_2"], 200 + torch.from_numpy(constants["u"]).expand(4, 6))


def test_an_unknown_tensor_is_refused() -> None:
    with pytest.raises(UsageError, match="no tensor of this name"):
        convert(io.load(ASSETS / MODELS[0]), given=["nothing"])


def test_maps_without_a_batch_axis_in_front_are_given_as_they_are_returned() -> None:
    """As of a fixed batch with tokens first ([T, 1, d]), or with patches as the batch (MobileViT)."""
    nodes = [
        n("Transpose", "x", "first", perm=[1, 0, 2]),
        n("Add", "first w", "one"),
        n("MatMul", "one m", "two"),
        n("ReduceMean", "two zero", "y", keepdims=0),
    ]
    constants = {"w": values(6), "m": values(6, 5), "zero": np.array([0])}
    fixed = small_graphs.model(proto(nodes, [("x", FLOAT, [1, 4, 6])], [("y", FLOAT, [1, 5])], constants))
    whole, apart = convert(fixed, taps=["one"]), convert(fixed, taps=["one"], given=["one"])
    x = torch.randn(3, 4, 6)
    expected = whole(x)
    assert expected["one"].shape == (3, 4, 1, 6)
    torch.testing.assert_close(apart(x, expected["one"])["y"], expected["y"])
    assert expected["y"].shape == (3, 5)
