"""The quantised Linears of a converted network: found by what they compute, with what follows them.

    x -> Quantiser -> matmul(., Quantiser(w)) -> + bias [-> Quantiser] [-> GELU] [-> Quantiser] -> y

1. The right operand of a matmul, or a linear's weight, that depends on constants only and lies on a grid s[n] (one
   scale an output channel, or one for all) is a weight: w = s[n] w_q[n], checked on the values, not on the names.
2. The left operand comes from a quantiser with one scale and zero point 0.
3. What follows belongs to the Linear as long as it has one reader: bias, quantiser, activation, quantiser.

Limits: no convolutions; a weight with more than one scale along K is none.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from gpusq_onnx.runtime.kernels.arithmetic import HIGH, LOW, Activation, quantise
from gpusq_onnx.torchgraph.fx_nodes import only_reader
from gpusq_onnx.torchgraph.quantiser import Quantiser

_GRID = 1e-3  # of a step: how far a weight may lie from its grid, which FP32 division cannot meet exactly


@dataclass
class LinearSite:
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

    @property
    def rows(self) -> int:
        """M, once shapes are noted."""
        return math.prod(self.product.meta["noted"][:-1])

    @property
    def sparse(self) -> bool:
        n, k = self.codes.shape
        return k % 4 == 0 and int((self.codes.view(n, k // 4, 4) != 0).sum(-1).max()) <= 2


def find_sites(body: fx.GraphModule) -> list[LinearSite]:
    """The quantised Linears, in graph order."""
    known = _constants(body)
    return [site for node in body.graph.nodes if (site := _site(body, node, known)) is not None]


def _site(body: fx.GraphModule, node: fx.Node, known: set[fx.Node]) -> LinearSite | None:
    if node.op != "call_function" or node.target not in (torch.matmul, functional.linear):
        return None
    left, right = node.args[0], node.args[1]
    if not isinstance(left, fx.Node) or right not in known or not isinstance(right, fx.Node):
        return None
    quantiser = quantiser_of(body, left)
    if quantiser is None or not is_plain(quantiser):
        return None
    w = _value(body, right)
    if w.ndim != 2:
        return None
    w = w.t() if node.target is torch.matmul else w
    scale = _scale_of(body, right, w)
    if scale is None:
        return None
    given = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    site = LinearSite(node, left, quantise(w, scale[:, None]), scale, None, node)
    if isinstance(given, fx.Node):
        if given not in known:
            return None
        site.bias = _value(body, given)
    _follow(body, site, known)
    return site


def _follow(body: fx.GraphModule, site: LinearSite, known: set[fx.Node]) -> None:
    """Take along what follows the product."""
    after = only_reader(site.last)
    if after is not None and site.bias is None and after.target is operator.add:
        other = after.args[1] if after.args[0] is site.last else after.args[0]
        if isinstance(other, fx.Node) and other in known and _value(body, other).shape == (len(site.scale),):
            site.bias, site.last = _value(body, other), after
            after = only_reader(after)
    if after is not None and takes(body, after):
        following = only_reader(after)
        if following is not None and following.target is functional.gelu:
            site.middle, site.last, after = after, after, following
        else:
            site.out, site.last = after, after
            return
    if after is not None and after.target in (functional.gelu, functional.relu):
        approximate = after.kwargs.get("approximate", "none")
        names: dict[Any, Activation] = {"none": "gelu", "tanh": "gelu_tanh"}
        site.activation = "relu" if after.target is functional.relu else names[approximate]
        site.last = after
        last = only_reader(after)
        if last is not None and takes(body, last):
            site.out, site.last = last, last


def note_shapes(body: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
    """Run the network once, and keep every tensor's shape in its node's meta as "noted"."""

    class Notes(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if isinstance(result, Tensor):
                n.meta["noted"] = tuple(result.shape)
            return result

    Notes(body).run(*inputs)


def quantiser_of(body: fx.GraphModule, node: fx.Node) -> Quantiser | None:
    """The quantiser that a node calls; None: it calls something else."""
    module = body.get_submodule(str(node.target)) if node.op == "call_module" else None
    return module if isinstance(module, Quantiser) else None


def is_plain(quantiser: Quantiser) -> bool:
    """One scale, and codes that are INT8 with zero point 0."""
    return quantiser.axis is None and quantiser.grid is None and quantiser.qmin >= LOW and quantiser.qmax <= HIGH


def scale_at(body: fx.GraphModule, node: fx.Node) -> Tensor:
    """The one scale of a quantiser's node, at least its floor."""
    quantiser = quantiser_of(body, node)
    assert quantiser is not None
    return _value(body, node.args[1]).float().reshape(()).clamp_min(quantiser.floor)  # type: ignore[arg-type]


def takes(body: fx.GraphModule, node: fx.Node) -> bool:
    """A quantiser whose codes a kernel can write: plain, and of the full range."""
    quantiser = quantiser_of(body, node)
    return quantiser is not None and is_plain(quantiser) and (quantiser.qmin, quantiser.qmax) == (LOW, HIGH)


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
    """The scale[N] of the grid that w[N, K] lies on: that of a quantiser or stored codes before it, if it fits."""
    queue = [node]
    while queue:
        at = queue.pop()
        if quantiser_of(body, at) or getattr(at.target, "__name__", "") == "stored_codes":
            step = _value(body, at.args[1]).float().reshape(-1)  # type: ignore[arg-type]
            if len(step) not in (1, w.shape[0]):
                return None
            scale = step.expand(w.shape[0]).contiguous()
            codes = w.float() / scale[:, None]
            fits = bool((codes - codes.round()).abs().max() < _GRID) and bool(codes.abs().max() < 128.5)
            return scale if fits else None
        queue.extend(at.all_input_nodes)
    return None
