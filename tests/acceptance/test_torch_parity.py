"""Every export of the zoo as a torch module: outputs as onnxruntime's, gradients as the original module's.

The largest difference of an output is taken relative to its range. Detectors that end in what no gradient passes are
compared at the tensors up to which they can be trained.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from acceptance_table import Table

from gpusq_onnx.graph.io import load, to_bytes, write_tapped
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.sites import find_sites
from gpusq_onnx.runtime.ort import Session
from gpusq_onnx.torchgraph.convert import convert
from gpusq_onnx.torchgraph.network import Network
from gpusq_onnx.torchgraph.prefix import trainable_prefix
from gpusq_onnx.torchgraph.write_back import write_back
from tools.zoo.native import native

pytestmark = pytest.mark.slow

TITLE = "Exports as torch modules: outputs against onnxruntime, gradients against the original"
COLUMNS = ["model", "exporter", "compared", "difference", "trained", "sites", "nodes", "load, convert"]
TOLERANCE = 1e-4
BACKBONES = [f"{kind}_{size}_224" for kind in ("deit", "swin") for size in ("tiny", "small", "base")]
WHOLE = [
    *((model, exporter) for model in BACKBONES for exporter in ("legacy17", "dynamo18", "dynamo20")),
    ("detr_r50", "legacy17"), ("deformable_detr_r50", "legacy17"),
    ("detr_r50", "dynamo20"), ("deformable_detr_r50", "dynamo20"),
    ("upernet_swin_tiny", "legacy17"), ("upernet_swin_tiny", "dynamo20"),
]  # fmt: skip
PREFIXES = [("mask_rcnn_swin_tiny", "legacy17"), ("cascade_mask_rcnn_swin_tiny", "legacy17")]
SHARED = ["vit_tiny_imagenet", "deimv2_atto"]


@pytest.mark.parametrize(("model", "exporter"), WHOLE)
def test_zoo(model: str, exporter: str, export: Callable[[str, str], Path], table: Table) -> None:
    """The whole graph of an export."""
    _hold(model, exporter, export(model, exporter), table)


@pytest.mark.parametrize(("model", "exporter"), PREFIXES)
def test_prefix(model: str, exporter: str, export: Callable[[str, str], Path], table: Table) -> None:
    """Backbone, pyramid and proposals of a two-stage detector."""
    network = _hold(model, exporter, export(model, exporter), table, prefix=True)
    assert len(network.outputs) >= 6


@pytest.mark.parametrize("model", SHARED)
def test_trained(model: str, shared: Path, table: Table) -> None:
    """The two trained models beside the project."""
    _hold(model, "-", shared / "data" / f"{model}.onnx", table)


def _hold(name: str, exporter: str, path: Path, table: Table, prefix: bool = False) -> Network:
    began = time.perf_counter()
    model = load(path)
    loaded = time.perf_counter()
    outputs = trainable_prefix(model) if prefix else [spec.name for spec in model.outputs()]
    network = convert(model, outputs=outputs)
    seconds = time.perf_counter() - loaded
    expected, found = _both(model, network, outputs)
    worst = max(_difference(found[output], expected[output]) for output in outputs)
    trained = set(network.initializers.values())
    sites = find_sites(model)
    reached = [site for site in sites if site.weight.name in trained]
    table.add(
        [
            name,
            exporter,
            f"{len(outputs)} tensors" if prefix else "outputs",
            f"{worst:.1e}",
            ", ".join(f"{count} {role}" for role, count in Counter(network.roles.values()).most_common()),
            f"{len(reached)} of {len(sites)}",
            str(len(network.body.graph.nodes)),
            f"{loaded - began:.1f} s, {seconds:.1f} s",
        ],
        model=name,
        exporter=exporter,
        difference=worst,
        roles=dict(Counter(network.roles.values())),
        sites=[len(reached), len(sites)],
        seconds=seconds,
    )
    assert worst <= TOLERANCE
    assert prefix or all(site in reached or site.conflicts or site.unfit for site in sites)
    if path.stat().st_size < 50e6:
        before = to_bytes(model)
        assert write_back(network, model) == []
        assert to_bytes(model) == before
    return network


def _both(model: Model, network: Network, outputs: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    generator = np.random.default_rng(0)
    feed = {}
    for spec in model.inputs():
        shape = [size if isinstance(size, int) else 2 for size in spec.shape]
        whole = spec.dtype.kind == "i"  # the size of the original image
        feed[spec.name] = np.full(shape, 320, spec.dtype) if whole else generator.random(shape, np.float32)
    with tempfile.TemporaryDirectory() as folder:
        tapped = Path(folder) / "tapped.onnx"
        write_tapped(model, tapped, outputs)
        expected = Session(tapped).run(feed, outputs)
    with torch.no_grad():
        found = network(*(torch.from_numpy(feed[name]) for name in network.inputs))
    return expected, {name: value.numpy() for name, value in found.items()}


def _difference(found: Any, expected: Any) -> float:
    if found.shape == (1, *expected.shape):  # a fixed batch of one, no axis of the tensor
        found = found[0]
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / max(float(np.ptp(expected)), 1e-12))


@pytest.mark.parametrize("exporter", ["legacy17", "dynamo18", "dynamo20"])
@pytest.mark.parametrize("model", ["deit_tiny_224", "swin_tiny_224"])
def test_gradients(model: str, exporter: str, export: Callable[[str, str], Path], table: Table) -> None:
    """Every parameter's gradient is the original module's, under whatever name and layout it was exported."""
    network = convert(load(export(model, exporter)))
    original = native(model)
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    target = torch.randn(2, 1000, generator=torch.Generator().manual_seed(1))
    torch.nn.functional.mse_loss(original(x), target).backward()
    torch.nn.functional.mse_loss(network(x)[network.outputs[0]], target).backward()
    ours = {_bytes(p): p for p in network.parameters()}
    worst, matched = 0.0, set[int]()
    for name, theirs in original.named_parameters():
        assert theirs.grad is not None, name
        if name.endswith("relative_position_bias_table"):
            index = original.get_submodule(name.rpartition(".")[0]).relative_position_index.reshape(-1)
            gathered = theirs[index]  # exported as this, [pairs of tokens, heads], or as the bias [heads, pairs]
            parameter = ours[next(key for key in (_bytes(gathered), _bytes(gathered.t())) if key in ours)]
            found = _gradient(parameter)
            by_entry = found if found.shape == gathered.shape else found.reshape(gathered.t().shape).t()
            gradient = torch.zeros_like(theirs).index_add(0, index, by_entry)
        elif _bytes(theirs) in ours:
            parameter = ours[_bytes(theirs)]
            gradient = _gradient(parameter).reshape(theirs.shape)
        else:
            parameter = ours[_bytes(theirs.t())]
            gradient = _gradient(parameter).t()
        worst = max(worst, float((gradient - theirs.grad).abs().max() / theirs.grad.abs().max()))
        matched.add(id(parameter))
    table.add(
        [model, exporter, f"{len(matched)} gradients", f"{worst:.1e}", "-", "-", "-", "-"],
        model=model,
        exporter=exporter,
        gradients=worst,
    )
    assert matched == {id(parameter) for parameter in network.parameters()}
    assert worst < TOLERANCE


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()


def _gradient(parameter: torch.Tensor) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad
