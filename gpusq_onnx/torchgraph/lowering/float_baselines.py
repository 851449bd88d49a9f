"""The dense float baselines of a Q/DQ network: its twin without quantisers, in one type or with FP8 Linears."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn

from gpusq_onnx.runtime.kernels import float8
from gpusq_onnx.runtime.kernels.arithmetic import Tail
from gpusq_onnx.torchgraph.lowering.integer import Rows, finish
from gpusq_onnx.torchgraph.lowering.linears import find_sites, quantiser_of, scale_at
from gpusq_onnx.torchgraph.network import Network


def float_twin(network: Network, device: torch.device, dtype: torch.dtype = torch.float32) -> fx.GraphModule:
    """The network with its quantisers gone, in `dtype` on `device`."""
    body = copy.deepcopy(network.body).to(device).eval()
    _without_quantisers(body)
    finish(body, dtype)
    return body


def float8_network(network: Network, device: torch.device) -> fx.GraphModule:
    """The network in BF16 with an FP8 Linear in the place of every quantised one that `_scaled_mm` can serve."""
    body = copy.deepcopy(network.body).to(device).eval()
    with torch.no_grad():
        for number, site in enumerate(find_sites(body)):
            if float8.why_not(site.codes.shape[0], site.codes.shape[1], device):
                continue
            scale = float8.float8_scale(scale_at(body, site.quantiser))
            weight = site.codes.float() * site.scale[:, None]
            tail = Tail(site.scale, site.bias, activation=site.activation, dtype=torch.bfloat16)
            name = f"linear_{number}"
            body.add_submodule(name, Float8Site(float8.Float8Linear(weight, scale, tail)).to(device))
            with body.graph.inserting_after(site.last):
                made = body.graph.call_module(name, (site.quantiser.args[0],))
            site.last.replace_all_uses_with(made)
    body.graph.eliminate_dead_code()  # quantisers that nothing reads
    _without_quantisers(body)
    finish(body, torch.bfloat16)
    return body


class Float8Site(nn.Module):
    """An FP8 Linear that takes floats."""

    def __init__(self, linear: float8.Float8Linear) -> None:
        super().__init__()
        self.rows = Rows(linear)

    def forward(self, x: Tensor) -> Tensor:
        linear = self.rows.kernel
        assert isinstance(linear, float8.Float8Linear)
        y: Tensor = self.rows(float8.to_float8(x, linear.scale))
        return y


def _without_quantisers(body: fx.GraphModule) -> None:
    for node in list(body.graph.nodes):
        if quantiser_of(body, node):
            node.replace_all_uses_with(node.args[0])
            body.graph.erase_node(node)
