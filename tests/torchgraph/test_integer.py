"""The torch backend against onnxruntime on the CPU: every Linear by itself, and the embedded model from end to end.

Rounding: both sides add the same integers, in float32 or in int32, and differ in the last bit; a value next to a tie
then falls one step further on one side, and the layers after see that. So single Linears, fed the same codes, are held
to float32's precision, and whole networks to the share of values that moved and to the answers.
"""

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.errors import NothingMatched
from gpusq_onnx.graph.io import load
from gpusq_onnx.pipeline import grammar, manager, table
from gpusq_onnx.pipeline.run import RunOptions
from gpusq_onnx.runtime.kernels.choose import Chooser
from gpusq_onnx.runtime.ort import Session
from gpusq_onnx.torchgraph.convert import convert
from gpusq_onnx.torchgraph.lowering.attention import transposed_attention
from gpusq_onnx.torchgraph.lowering.float_baselines import float8_network, float_twin
from gpusq_onnx.torchgraph.lowering.integer import lower
from gpusq_onnx.torchgraph.lowering.linears import find_sites
from gpusq_onnx.torchgraph.network import Network

ASSETS = Path(__file__).parents[1] / "assets"
CPU = torch.device("cpu")
DENSE = "dense"
PIPELINES = {
    "accurate": "prune24,qdq-int8",
    "sparse-int8": "prune24,qdq-int8{profile=sparse-int8}",
    DENSE: "qdq-int8{attention=false weights=int8}",
}


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    with np.load(ASSETS / "digits_test.npz") as data:
        return data["pixel_values"][:32]


@pytest.fixture(scope="module", params=list(PIPELINES))
def compressed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compressed") / f"{request.param}.onnx"
    data = DataOptions.from_values({"path": ASSETS / "digits_train.npz", "samples": 16})
    manager.run(
        ASSETS / "digits_vit.onnx", path, table.expand(grammar.parse(PIPELINES[request.param])), RunOptions(data)
    )
    return path


@pytest.fixture(scope="module")
def network(compressed: Path) -> Network:
    return convert(load(compressed), train=("weight", "scale"))


def linears_of(model: onnx.ModelProto) -> list[tuple[str, str, str]]:
    """(product, codes that it reads, name of their scale) of each MatMul of data by a quantised weight."""
    made = {name: node for node in model.graph.node for name in node.output}
    constants = {tensor.name for tensor in model.graph.initializer}
    found = []
    for node in model.graph.node:
        pairs = [made.get(name) for name in node.input] if node.op_type == "MatMul" else []
        if pairs and all(pair is not None and pair.op_type == "DequantizeLinear" for pair in pairs):
            source = pairs[1].input[0]
            if source in constants or made[source].input[0] in constants:  # attention products have data on both sides
                found.append((node.output[0], *pairs[0].input[:2]))
    return found


@pytest.mark.long
def test_every_linear_equals_onnxruntime_on_the_same_codes(
    compressed: Path, network: Network, images: np.ndarray, tmp_path: Path
) -> None:
    """Each product of the ONNX graph, tapped together with the codes that it reads, against integer sums over those."""
    model = onnx.load(compressed)
    linears = linears_of(model)
    scales = {tensor.name: tensor for tensor in model.graph.initializer}
    taps = list(dict.fromkeys(name for product, codes, _ in linears for name in (product, codes)))
    for name in taps:
        model.graph.output.append(helper.make_empty_tensor_value_info(name))
    onnx.save(model, tmp_path / "tapped.onnx")
    session = Session(tmp_path / "tapped.onnx", exact_qdq=True)
    found = session.run({session.inputs()[0].name: images[:4]}, taps)
    sites = find_sites(network.body)
    assert len(sites) == len(linears) == 12
    for site, (product, codes, step) in zip(sites, linears, strict=True):
        total = torch.from_numpy(found[codes]).long() @ site.codes.long().t()
        ours = total.double() * float(numpy_helper.to_array(scales[step])) * site.scale.double()
        theirs = torch.from_numpy(found[product]).double()
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-6


def test_the_network_equals_onnxruntime(compressed: Path, network: Network, images: np.ndarray) -> None:
    session = Session(compressed, exact_qdq=True)
    expected = torch.from_numpy(session.run({session.inputs()[0].name: images})[session.outputs()[0].name])
    x = torch.from_numpy(images)
    body, sites = lower(network, [x], Chooser(CPU))
    with torch.no_grad():
        found, same_graph = body(x)[0], next(iter(network(x).values()))
    assert len(sites) == 12
    assert float(((found - same_graph).abs() < 1e-4).float().mean()) > 0.9  # most images meet no tie at all
    assert float((found - expected).norm() / expected.norm()) < 0.01
    assert bool((found.argmax(1) == expected.argmax(1)).all())


def test_what_stands_behind_is_taken_along(compressed: Path, network: Network) -> None:
    sites = find_sites(network.body)
    assert all(site.bias is not None and site.sparse == (compressed.stem != DENSE) for site in sites)
    qkv, proj, fc1, fc2 = sites[:4]
    assert fc1.activation == "gelu" and fc1.out is not None
    assert {site.activation for site in (qkv, proj, fc2)} == {""}
    quantised = compressed.stem == "sparse-int8"
    assert (fc1.middle is not None) == quantised
    assert all((site.out is not None) == quantised for site in (qkv, proj, fc2))


def test_quantised_attention_runs_on_its_kernel(compressed: Path, network: Network, images: np.ndarray) -> None:
    body, _ = lower(network, [torch.from_numpy(images[:2])], Chooser(CPU))
    found = [node for node in body.graph.nodes if node.target is transposed_attention]
    assert len(found) == (0 if compressed.stem == DENSE else 3)
    assert all(node.args[4] is not None for node in found)  # the projection's quantiser moved into it
    left = [node for node in body.graph.nodes if node.target in (torch.softmax, torch.matmul)]
    assert not left  # in floating point attention is one fused operator already


@pytest.mark.long
def test_any_batch_and_no_break_under_the_compiler(compressed: Path, network: Network, images: np.ndarray) -> None:
    x = torch.from_numpy(images)
    body, _ = lower(network, [x[:4]], Chooser(CPU))
    with torch.no_grad():
        whole = body(x)[0]
        assert float(((body(x[:5])[0] - whole[:5]).abs() < 1e-4).float().mean()) > 0.9
        if compressed.stem == "sparse-int8":
            torch.testing.assert_close(torch.compile(body, backend="eager", fullgraph=True)(x)[0], whole)


def test_bfloat16_around_the_integers_stays_close(network: Network, images: np.ndarray) -> None:
    x = torch.from_numpy(images)
    exact, _ = lower(network, [x], Chooser(CPU))
    rounded, _ = lower(network, [x], Chooser(CPU), torch.bfloat16)
    with torch.no_grad():
        a, b = exact(x)[0], rounded(x)[0]
    assert b.dtype == torch.bfloat16
    assert float((a.argmax(1) == b.argmax(1)).float().mean()) > 0.9


def test_the_float_rivals_are_the_float_model(network: Network, images: np.ndarray) -> None:
    x, twin = torch.from_numpy(images), copy.deepcopy(network)
    for quantiser in twin.quantisers:
        quantiser.enabled = False
    with torch.no_grad():
        expected = next(iter(twin(x).values()))
        torch.testing.assert_close(float_twin(network, CPU)(x)[0], expected, rtol=1e-5, atol=1e-5)
        close = float_twin(network, CPU, torch.bfloat16)(x)[0]
        eight = float8_network(network, CPU)(x)[0]
    assert float((close.argmax(1) == expected.argmax(1)).float().mean()) > 0.9
    assert float((eight.argmax(1) == expected.argmax(1)).float().mean()) > 0.8


def test_a_float_model_has_nothing_to_lower(images: np.ndarray) -> None:
    network = convert(load(ASSETS / "digits_vit.onnx"), train=("weight", "scale"))
    with pytest.raises(NothingMatched, match="no Linear in INT8"):
        lower(network, [torch.from_numpy(images)], Chooser(CPU))
