"""A converted Q/DQ network as it runs on a GPU without TensorRT: its quantised Linears on integer kernels.

    before   x -> Quantiser -> matmul(., Quantiser(w)) -> + bias [-> Quantiser] [-> GELU] [-> Quantiser] -> y
    after    x -> quantise -> INT8 codes -> one module of `runtime.kernels` -> y, or the codes of the last quantiser

1. The right operand of a matmul, or a linear's weight, that depends on constants only and lies on a grid s[n] (one scale an
   output channel, or one for all) is a weight: w = s[n] w_q[n], checked on the values, not on the names.
2. The left operand's quantiser (one scale, zero point 0) gives the codes; all its readers share them.
3. What stands behind is taken along as long as it has one reader: bias, quantiser, activation, quantiser.
4. The quantisers left over become plain functions, so that torch.compile fuses them with their neighbours.

The network computes the same function, up to the rounding of float operations: the integer sum is exact. Limits: Linears
only, no convolutions; weights with more than one scale along K stay float.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from gpusq_onnx.runtime.kernels.arithmetic import HIGH, LOW, Activation, Tail, dequantise, quantise
from gpusq_onnx.runtime.kernels.choose import Chooser
from gpusq_onnx.torchgraph.network import Network
from gpusq_onnx.torchgraph.quantiser import Quantiser

_GRID = 1e-3  # of a step: how far a weight may lie from its grid, which FP32 division cannot meet exactly


@dataclass
class Site:
    """One quantised Linear of the graph.

    Attributes:
        product: the matmul or linear node.
        quantiser: the node that quantises its input.
        codes, scale: of the weight: INT8 [N, K], float32 [N].
        bias: [N], or None.
        last: the last node that the tail takes along; its readers read the module instead.
        middle, activation, out: see `arithmetic.Tail`.
        sparse: at most 2 of each 4 codes along K are not zero.
    """

    product: fx.Node
    quantiser: fx.Node
    codes: Tensor
    scale: Tensor
    bias: Tensor | None
    last: fx.Node
    middle: fx.Node | None = None
    activation: Activation = ""
    out: fx.Node | None = None
    rows: int = 0

    @property
    def sparse(self) -> bool:
        n, k = self.codes.shape
        return k % 4 == 0 and int((self.codes.view(n, k // 4, 4) != 0).sum(-1).max()) <= 2


def lower(
    network: Network, inputs: Sequence[Tensor], chooser: Chooser, dtype: torch.dtype = torch.float32
) -> tuple[fx.GraphModule, list[Site]]:
    """`network` for inputs of these shapes on the chooser's device, and the Linears that run on integers.

    Args:
        network: converted with the roles "weight" and "scale" at least; it is not changed.
        inputs: one example batch; the batch size decides which kernels are chosen.
        chooser: builds the kernels.
        dtype: of all that is not quantised.

    Raises:
        NothingMatched: no quantised Linear.
    """
    body = copy.deepcopy(network.body).to(chooser.device).eval()
    with torch.no_grad():
        sites = find_sites(body)
        _count_rows(body, sites, [x.to(chooser.device) for x in inputs])
        codes: dict[fx.Node, fx.Node] = {}
        for number, site in enumerate(sites):
            _replace(body, site, number, chooser, codes, dtype)
        _plain_quantisers(body, codes, dtype)
    body.graph.eliminate_dead_code()
    body.delete_all_unused_submodules()
    body.recompile()
    _cast(body, dtype)
    return body, sites


def float_twin(network: Network, device: torch.device, dtype: torch.dtype = torch.float32) -> fx.GraphModule:
    """The network with its quantisers off, in `dtype` on `device`: the dense float rival."""
    body = copy.deepcopy(network.body).to(device).eval()
    for node in list(body.graph.nodes):
        if _quantiser(body, node):
            node.replace_all_uses_with(node.args[0])
            body.graph.erase_node(node)
    body.delete_all_unused_submodules()
    body.recompile()
    _cast(body, dtype)
    return body


def find_sites(body: fx.GraphModule) -> list[Site]:
    """The quantised Linears, in graph order."""
    known = _constants(body)
    return [site for node in body.graph.nodes if (site := _site(body, node, known)) is not None]


def _site(body: fx.GraphModule, node: fx.Node, known: set[fx.Node]) -> Site | None:
    if node.op != "call_function" or node.target not in (torch.matmul, functional.linear):
        return None
    left, right = node.args[0], node.args[1]
    if not isinstance(left, fx.Node) or right not in known or not isinstance(right, fx.Node):
        return None
    quantiser = _quantiser(body, left)
    if quantiser is None or not _is_plain(quantiser):
        return None
    w = _value(body, right)
    if w.ndim != 2:
        return None
    w = w.t() if node.target is torch.matmul else w
    scale = _scale_of(body, right, w)
    if scale is None:
        return None
    given = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    site = Site(node, left, quantise(w, scale[:, None]), scale, None, node)
    if isinstance(given, fx.Node):
        if given not in known:
            return None
        site.bias = _value(body, given)
    _follow(body, site, known)
    return site


def _follow(body: fx.GraphModule, site: Site, known: set[fx.Node]) -> None:
    """Take along what stands behind the product."""
    behind = _only_reader(site.last)
    if behind is not None and site.bias is None and behind.target is operator.add:
        other = behind.args[1] if behind.args[0] is site.last else behind.args[0]
        if isinstance(other, fx.Node) and other in known and _value(body, other).shape == (len(site.scale),):
            site.bias, site.last = _value(body, other), behind
            behind = _only_reader(behind)
    if behind is not None and _takes(body, behind):
        following = _only_reader(behind)
        if following is not None and following.target is functional.gelu:
            site.middle, site.last, behind = behind, behind, following
        else:
            site.out, site.last = behind, behind
            return
    if behind is not None and behind.target in (functional.gelu, functional.relu):
        approximate = behind.kwargs.get("approximate", "none")
        names: dict[Any, Activation] = {"none": "gelu", "tanh": "gelu_tanh"}
        site.activation = "relu" if behind.target is functional.relu else names[approximate]
        site.last = behind
        last = _only_reader(behind)
        if last is not None and _takes(body, last):
            site.out, site.last = last, last


def _replace(
    body: fx.GraphModule,
    site: Site,
    number: int,
    chooser: Chooser,
    codes: dict[fx.Node, fx.Node],
    dtype: torch.dtype,
) -> None:
    """Put a kernel's module in the place of a site."""
    step = _scale(body, site.quantiser)
    tail = Tail(
        step * site.scale,
        site.bias,
        middle=None if site.middle is None else _scale(body, site.middle),
        activation=site.activation,
        out=None if site.out is None else _scale(body, site.out),
        dtype=dtype,
    )
    kernel = Rows(chooser.build(site.codes, tail, site.rows, is_sparse=site.sparse))
    name = f"linear_{number}"
    body.add_submodule(name, kernel)
    given = _codes(body, site.quantiser, codes)
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


def _codes(body: fx.GraphModule, node: fx.Node, codes: dict[fx.Node, fx.Node]) -> fx.Node:
    """The node of the INT8 codes that a quantiser's node stands for."""
    if node not in codes:
        quantiser = _quantiser(body, node)
        assert quantiser is not None
        with body.graph.inserting_before(node):
            scale = _buffer(body, _scale(body, node))
            codes[node] = body.graph.call_function(quantise, (node.args[0], scale, quantiser.qmin, quantiser.qmax))
    return codes[node]


def _plain_quantisers(body: fx.GraphModule, codes: dict[fx.Node, fx.Node], dtype: torch.dtype) -> None:
    """Quantisers that something reads as float: dequantised codes."""
    for node in list(body.graph.nodes):
        quantiser = _quantiser(body, node)
        if quantiser is None or not _is_plain(quantiser) or not node.users:
            continue
        given = _codes(body, node, codes)
        with body.graph.inserting_after(given if _behind(body.graph, given, node) else node):
            scale = _buffer(body, _scale(body, node))
        with body.graph.inserting_after(scale):
            made = body.graph.call_function(dequantise, (given, scale, dtype))
        node.replace_all_uses_with(made)
        body.graph.erase_node(node)


def _behind(graph: fx.Graph, later: fx.Node, node: fx.Node) -> bool:
    """Whether `later` stands behind `node` in the graph's order."""
    order = {found: place for place, found in enumerate(graph.nodes)}
    return order[later] > order[node]


def _count_rows(body: fx.GraphModule, sites: list[Site], inputs: Sequence[Tensor]) -> None:
    """Run the network once, and note how many rows each site's input has."""
    wanted = {site.product: site for site in sites}

    class Counter(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if n in wanted:
                wanted[n].rows = result.numel() // result.shape[-1]
            return result

    Counter(body).run(*inputs)


def _constants(body: fx.GraphModule) -> set[fx.Node]:
    """Nodes that depend on parameters and buffers alone."""
    known: set[fx.Node] = set()
    for node in body.graph.nodes:
        inner = node.op in ("call_function", "call_method", "call_module") and node.all_input_nodes
        if node.op == "get_attr" or (inner and all(given in known for given in node.all_input_nodes)):
            known.add(node)
    return known


def _value(body: fx.GraphModule, node: fx.Node) -> Tensor:
    """What a constant node is."""

    def given(argument: Any) -> Any:
        return fx.map_arg(argument, lambda one: _value(body, one))

    if node.op == "get_attr":
        found: Tensor = (
            body.get_parameter(node.target)
            if node.target in dict(body.named_parameters())
            else getattr(body, str(node.target))
        )
        return found.detach()
    if node.op == "call_module":
        made: Tensor = body.get_submodule(str(node.target))(*given(node.args))
        return made.detach()
    if node.op == "call_method":
        first, *rest = given(node.args)
        return getattr(first, str(node.target))(*rest, **given(node.kwargs))  # type: ignore[no-any-return]
    assert callable(node.target)
    return node.target(*given(node.args), **given(node.kwargs))  # type: ignore[no-any-return]


def _scale_of(body: fx.GraphModule, node: fx.Node, w: Tensor) -> Tensor | None:
    """The scale[N] of the grid that w[N, K] lies on: that of a quantiser or stored codes in front of it, if it fits."""
    queue = [node]
    while queue:
        at = queue.pop()
        if _quantiser(body, at) or getattr(at.target, "__name__", "") == "stored_codes":
            step = _value(body, at.args[1]).float().reshape(-1)  # type: ignore[arg-type]
            if len(step) not in (1, w.shape[0]):
                return None
            scale = step.expand(w.shape[0]).contiguous()
            codes = w.float() / scale[:, None]
            fits = bool((codes - codes.round()).abs().max() < _GRID) and bool(codes.abs().max() < 128.5)
            return scale if fits else None
        queue.extend(at.all_input_nodes)
    return None


def _quantiser(body: fx.GraphModule, node: fx.Node) -> Quantiser | None:
    module = body.get_submodule(str(node.target)) if node.op == "call_module" else None
    return module if isinstance(module, Quantiser) else None


def _is_plain(quantiser: Quantiser) -> bool:
    """One scale, and codes that are INT8 with zero point 0."""
    return quantiser.axis is None and LOW <= quantiser.qmin and quantiser.qmax <= HIGH


def _takes(body: fx.GraphModule, node: fx.Node) -> bool:
    """A quantiser whose codes a kernel can write: plain, and of the full range."""
    quantiser = _quantiser(body, node)
    return quantiser is not None and _is_plain(quantiser) and (quantiser.qmin, quantiser.qmax) == (LOW, HIGH)


def _scale(body: fx.GraphModule, node: fx.Node) -> Tensor:
    """The one scale of a quantiser's node, at least its floor."""
    quantiser = _quantiser(body, node)
    assert quantiser is not None
    return _value(body, node.args[1]).float().reshape(()).clamp_min(quantiser.floor)  # type: ignore[arg-type]


def _only_reader(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _buffer(body: fx.GraphModule, value: Tensor) -> fx.Node:
    """A new constant of the graph, in float32 for good."""
    name = f"step_{sum(1 for name, _ in body.named_buffers() if name.startswith('step_'))}"
    body.register_buffer(name, value)
    return body.graph.get_attr(name)


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
