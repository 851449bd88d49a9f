"""The INT8 codes after a quantiser of an fx graph, made once and shared by all that reads them."""

from __future__ import annotations

from torch import Tensor, fx

from gpusq_onnx.runtime.kernels.arithmetic import quantise
from gpusq_onnx.torchgraph.lowering.linears import quantiser_of, scale_at


def codes_at(body: fx.GraphModule, node: fx.Node, codes: dict[fx.Node, fx.Node]) -> fx.Node:
    """The node of the INT8 codes that a quantiser's node stands for."""
    if node not in codes:
        quantiser = quantiser_of(body, node)
        assert quantiser is not None
        with body.graph.inserting_before(node):
            scale = add_scale(body, scale_at(body, node))
            codes[node] = body.graph.call_function(quantise, (node.args[0], scale, quantiser.qmin, quantiser.qmax))
    return codes[node]


def add_scale(body: fx.GraphModule, value: Tensor) -> fx.Node:
    """A new constant of the graph: a scale, float32 for good."""
    name = f"step_{sum(1 for name, _ in body.named_buffers() if name.startswith('step_'))}"
    body.register_buffer(name, value)
    return body.graph.get_attr(name)
