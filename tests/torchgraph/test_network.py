"""A converted graph is an ordinary torch module: compiled, exported, copied, pickled, autocast, data-parallel."""

import copy
import io as bytes_io
import os
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from onnx_cases import ints, model_of, values
from test_peepholes import attention
from test_shapes import calls, n
from torch import Tensor, nn

from gpusq_onnx.graph.model import Model
from gpusq_onnx.torchgraph import functions
from gpusq_onnx.torchgraph.convert import convert
from gpusq_onnx.torchgraph.network import Network
from tests.launched import environments


@pytest.fixture(scope="module")
def model() -> Model:
    """A block with all that a network can hold: fused and quantised parts, constants, sizes that follow the batch."""
    core, constants = attention(mask=True)
    nodes = [
        n("LayerNormalization", "images gamma beta", "x"), *core, n("Transpose", "y", "back", perm=[0, 2, 1, 3]),
        n("Shape", "images", "shape"), n("Reshape", "back shape", "tokens"), n("Add", "tokens images", "stream"),
        n("QuantizeLinear", "stream s0 z0", "aq"), n("DequantizeLinear", "aq s0 z0", "a"),
        n("QuantizeLinear", "w1 s1 z1", "wq", axis=1), n("DequantizeLinear", "wq s1 z1", "wd", axis=1),
        n("MatMul", "a wd", "p"), n("Add", "p b1", "h"), n("Gelu", "h", "g"), n("Where", "half g tenth", "logits"),
    ]  # fmt: skip
    constants |= {
        "gamma": values(6), "beta": values(6), "w1": values(6, 8), "b1": values(8),
        "s0": np.array(0.05, np.float32), "z0": np.array(0, np.int8), "s1": np.full(8, 0.02, np.float32),
        "z1": np.zeros(8, np.int8), "half": values(4, 8) > 0, "tenth": np.array(0.1, np.float32),
    }  # fmt: skip
    return model_of(nodes, constants, (4, 6), ["logits"], name="images")[0]


@pytest.fixture
def network(model: Model) -> Network:
    found = convert(model)
    assert len(found.quantisers) == 2
    assert calls(found, functions.attention) == 1
    return found


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 4, 6, generator=torch.Generator().manual_seed(1))


def gradients(module: nn.Module, x: Tensor) -> list[Tensor]:
    module.zero_grad()
    module(x)["logits"].square().mean().backward()
    return [p.grad.clone() for p in module.parameters() if p.grad is not None]


def test_it_says_what_it_is(network: Network) -> None:
    assert network.inputs == ("images",)
    assert network.outputs == ("logits",)
    names = {name for name, _ in network.named_parameters()}
    assert names == set(network.roles) == set(network.initializers)
    assert not [node for node in network.body.graph.nodes if node.meta.keys() - {"is_wrapped"}]


def test_a_fixed_batch_with_fused_attention_warns_of_nothing(recwarn: pytest.WarningsRecorder) -> None:
    """torch has no rule for fused attention on a CPU under vmap: it is run group by group, and that is all."""
    core, constants = attention(mask=False)
    network = convert(model_of(core, constants, (4, 6), ["y"], batch=1)[0])
    assert network.fixed == 1 and calls(network, functions.attention) == 1
    network(images())["y"].sum().backward()
    assert not recwarn.list


def test_a_deep_copy_is_its_own_network(network: Network) -> None:
    twin = copy.deepcopy(network)
    with torch.no_grad():
        next(iter(twin.parameters())).add_(1)
    twin.quantisers[0].enabled = False
    assert network.quantisers[0].enabled
    assert not torch.equal(twin(images())["logits"], network(images())["logits"])
    assert twin.roles == network.roles


def test_pickled_and_saved_it_computes_the_same(network: Network) -> None:
    network.quantisers[1].enabled = False
    expected = network(images())["logits"]
    torch.testing.assert_close(pickle.loads(pickle.dumps(network))(images())["logits"], expected, rtol=0, atol=0)
    buffer = bytes_io.BytesIO()
    torch.save(network, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    torch.testing.assert_close(loaded(images())["logits"], expected, rtol=0, atol=0)
    assert [q.enabled for q in loaded.quantisers] == [q.enabled for q in network.quantisers]


def test_a_state_dict_holds_what_is_learned(network: Network, model: Model) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.01)
    other = convert(model)
    other.load_state_dict(network.state_dict())
    torch.testing.assert_close(other(images())["logits"], network(images())["logits"], rtol=0, atol=0)


@pytest.mark.long
def test_torch_compile_takes_the_whole_graph(network: Network) -> None:
    expected = gradients(network, images())
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradients(compiled, images()), expected)


def test_torch_export(network: Network) -> None:
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(network, (images(),), dynamic_shapes={"inputs": ({0: batch},)})
    found = program.module()(images(7))["logits"]
    torch.testing.assert_close(found, network(images(7))["logits"], rtol=1e-4, atol=1e-5)


def test_bfloat16_autocast(network: Network) -> None:
    expected = network(images())["logits"]
    with torch.autocast("cpu", torch.bfloat16):
        found = network(images())["logits"]
    assert bool((found.float() - expected).abs().max() < 0.1 * expected.abs().max())
    found.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == p.dtype for p in network.parameters())


@pytest.mark.parametrize("op", ["ScatterND", "ScatterElements"])
def test_a_scatter_under_autocast_joins_a_product_and_a_constant(op: str) -> None:
    places = ints([0, 1], [1, 2]) if op == "ScatterND" else ints([1, 0])
    updates = values(2) if op == "ScatterND" else values(1, 2)
    nodes = [n("MatMul", "x w", "h"), n(op, "h places updates", "y")]
    model, _ = model_of(nodes, {"w": values(6, 5), "places": places, "updates": updates}, (6,), ["y"])
    network = convert(model)
    with torch.autocast("cpu", torch.bfloat16):
        found = network(torch.ones(3, 6))["y"]
    torch.testing.assert_close(found, network(torch.ones(3, 6))["y"], rtol=0.02, atol=0.02)
    assert found.dtype == torch.float32


def _data_parallel(rank: int, environment: dict[str, str], network: Network, queue: Any) -> None:
    os.environ.update(environment)
    torch.distributed.init_process_group("gloo")
    parallel = nn.parallel.DistributedDataParallel(network)
    found = gradients(parallel, images().chunk(2)[rank])
    if rank == 0:
        queue.put([g.numpy() for g in found])
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one_with_both_batches(network: Network) -> None:
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    launched = enumerate(environments(2))
    workers = [context.Process(target=_data_parallel, args=(*process, network, queue)) for process in launched]
    for worker in workers:
        worker.start()
    found = [torch.from_numpy(g) for g in queue.get()]
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    torch.testing.assert_close(found, gradients(network, images()), rtol=1e-4, atol=1e-6)
