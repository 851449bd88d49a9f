"""A converted Q/DQ network as it runs on a GPU without TensorRT: Linears and attention on integer kernels.

    before   x -> Quantiser -> matmul(., Quantiser(w)) -> + bias [-> Quantiser] [-> GELU] [-> Quantiser] -> y
    after    x -> quantise -> INT8 codes -> one module of `runtime.kernels` -> y, or the codes of the last quantiser

All readers of a quantiser share its codes. The quantisers left over become plain functions, so that torch.compile fuses
them with their neighbours. The network computes the same function, up to the rounding of float operations: the integer
sum is exact.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, fx, nn

from gpusq_onnx.errors import NothingMatched
from gpusq_onnx.runtime.kernels.arithmetic import Tail, dequantise
from gpusq_onnx.runtime.kernels.choose import WAYS, Chooser
from gpusq_onnx.torchgraph.lowering.attention import replace_attention
from gpusq_onnx.torchgraph.lowering.codes import add_scale, codes_at
from gpusq_onnx.torchgraph.lowering.linears import LinearSite, find_sites, is_plain, note_shapes, quantiser_of, scale_at
from gpusq_onnx.torchgraph.network import Network


def lower(
    network: Network,
    inputs: Sequence[Tensor],
    chooser: Chooser,
    dtype: torch.dtype = torch.float32,
    ways: Sequence[str] = WAYS,
) -> tuple[fx.GraphModule, list[LinearSite]]:
    """`network` for inputs of these shapes on the chooser's device, and the Linears that run on integers.

    Args:
        network: converted with the roles "weight" and "scale" at least; it is not changed.
        inputs: one example batch; the batch size decides which kernels are chosen.
        chooser: builds the kernels.
        dtype: of all that is not quantised.
        ways: the kernels that are allowed; without "sparse" the result is the dense baseline.

    Raises:
        NothingMatched: no Linear in INT8.
    """
    body = copy.deepcopy(network.body).to(chooser.device).eval()
    with torch.no_grad():
        sites = find_sites(body)
        if not sites:
            raise NothingMatched(
                "the model has no Linear in INT8, which is what torch's kernels here are for",
                hint="quantise it first: --passes qdq-int8; FP8, FP4 and INT4 are timed by --backend tensorrt",
            )
        note_shapes(body, [x.to(chooser.device) for x in inputs])
        codes: dict[fx.Node, fx.Node] = {}
        build = partial(chooser.build, ways=ways)
        replace_attention(body, codes, dtype)
        for number, site in enumerate(sites):
            _replace(body, site, number, build, codes, dtype)
        _plain_quantisers(body, codes, dtype)
    finish(body, dtype)
    return body, sites


def _replace(
    body: fx.GraphModule,
    site: LinearSite,
    number: int,
    build: Callable[..., nn.Module],
    codes: dict[fx.Node, fx.Node],
    dtype: torch.dtype,
) -> None:
    """Put a kernel's module in the place of a site."""
    step = scale_at(body, site.quantiser)
    tail = Tail(
        step * site.scale,
        site.bias,
        middle=None if site.middle is None else scale_at(body, site.middle),
        activation=site.activation,
        out=None if site.out is None else scale_at(body, site.out),
        dtype=dtype,
    )
    kernel = Rows(build(site.codes, tail, site.rows, is_sparse=site.sparse))
    name = f"linear_{number}"
    body.add_submodule(name, kernel)
    given = codes_at(body, site.quantiser, codes)
    with body.graph.inserting_after(site.last):
        made = body.graph.call_module(name, (given,))
    if site.out is None:
        site.last.replace_all_uses_with(made)
        return
    codes[site.out] = made  # its float readers are given a dequantise later


class Rows(nn.Module):
    """A kernel over matrices as one over tensors of any rank: [..., K] to [..., N]."""

    def __init__(self, kernel: nn.Module) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.kernel(x.reshape(-1, x.shape[-1]))
        return y.reshape(*x.shape[:-1], y.shape[-1])


def _plain_quantisers(body: fx.GraphModule, codes: dict[fx.Node, fx.Node], dtype: torch.dtype) -> None:
    """Quantisers that something reads as float: dequantised codes."""
    for node in list(body.graph.nodes):
        quantiser = quantiser_of(body, node)
        if quantiser is None or not is_plain(quantiser) or not node.users:
            continue
        given = codes_at(body, node, codes)
        with body.graph.inserting_after(given if _follows(body.graph, given, node) else node):
            scale = add_scale(body, scale_at(body, node))
        with body.graph.inserting_after(scale):
            made = body.graph.call_function(dequantise, (given, scale, dtype))
        node.replace_all_uses_with(made)
        body.graph.erase_node(node)


def _follows(graph: fx.Graph, later: fx.Node, node: fx.Node) -> bool:
    """Whether `later` follows `node` in the graph's order."""
    order = {found: place for place, found in enumerate(graph.nodes)}
    return order[later] > order[node]


def finish(body: fx.GraphModule, dtype: torch.dtype) -> None:
    """Drop what nothing reads any more, nodes, modules and tensors, and compute in `dtype`; in place."""
    body.graph.eliminate_dead_code()
    body.delete_all_unused_submodules()
    read = {node.target for node in body.graph.nodes if node.op == "get_attr"}
    for name, _ in [*body.named_parameters(recurse=False), *body.named_buffers(recurse=False)]:
        if name not in read:
            delattr(body, name)  # the float weights of what runs on codes now
    body.recompile()
    _cast(body, dtype)


def _cast(body: fx.GraphModule, dtype: torch.dtype) -> None:
    """The float constants that are no scale to `dtype`, and the inputs as they come in."""
    if dtype == torch.float32:
        return
    scales = ("step_", "linear_")
    for name, parameter in body.named_parameters():
        if parameter.is_floating_point() and not name.startswith(scales):
            parameter.data = parameter.data.to(dtype)
    for name, buffer in body.named_buffers():
        if buffer.is_floating_point() and not name.startswith(scales):
            owner, _, last = name.rpartition(".")
            setattr(body.get_submodule(owner), last, buffer.to(dtype))
    for node in list(body.graph.nodes):
        if node.op == "placeholder":
            with body.graph.inserting_after(node):
                cast = body.graph.call_function(_to_float, (node, dtype))
            node.replace_all_uses_with(cast, delete_user_cb=lambda user, cast=cast: user is not cast)
    body.graph.lint()
    body.recompile()


def _to_float(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) if x.is_floating_point() else x
