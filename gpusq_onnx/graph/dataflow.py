"""Who feeds whom: the walks over a graph that structure is recognised by.

A tensor is *static* when it depends on initializers and tensor shapes alone, and *data* when it depends on what the
caller feeds. Walks follow data and pass over static side inputs (a scale, a mask, a reshape's target).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator

import onnx_graphsurgeon as gs

from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.operators import MEASURES, NORMS, Is, operators
from gpusq_onnx.graph.qdq.quantize_nodes import is_grid_clip

# What a residual branch may go through between a Linear and the Add that joins it: layout, layer scale, drop path, and
# what follows a Linear where norms come last (LeViT's BatchNorm; with NORMS, SwinV2's LayerNorm).
CARRIERS = operators(Is.MOVES | Is.RETYPES | Is.QUANTISES | Is.DEQUANTISES | Is.AFFINE) - operators(Is.WRITES)
# And between the two Linears of an MLP.
ELEMENTWISE = CARRIERS | NORMS | operators(Is.ACTIVATES) | {"Clip", "Max", "Min", "Neg", "Exp"}


class Dataflow:
    """Static and data tensors of one graph, and walks along the data.

    The object describes the graph at the moment it was made; make a new one after an edit.
    """

    def __init__(self, model: Model) -> None:
        self.nodes: list[gs.Node] = list(model.graph.nodes)
        self.outputs = {tensor.name for tensor in model.graph.outputs}
        self._data = {tensor.name for tensor in model.graph.inputs}
        for node in self.nodes:
            if node.op in MEASURES:
                continue
            if any(t.name in self._data for t in node.inputs) or has_subgraph(node):
                self._data.update(t.name for t in node.outputs)
        self._holders = {
            id(inner): node for node in self.nodes for body in node.subgraphs(recursive=True) for inner in body.nodes
        }

    def is_data(self, tensor: gs.Tensor) -> bool:
        """Whether the tensor depends on the graph's inputs (by value, not only by shape)."""
        return tensor.name in self._data

    def holder(self, node: gs.Node) -> gs.Node:
        """The node of this graph that a node is in: for one in a branch or a body the If, Loop or Scan, else itself."""
        return self._holders.get(id(node), node)

    def is_given(self, tensor: gs.Tensor) -> bool:
        """Whether the graph's caller gets the tensor, as it is or through a Cast."""
        casts = (node.outputs[0].name for node in tensor.outputs if node.op == "Cast")
        return tensor.name in self.outputs or any(name in self.outputs for name in casts)

    def data_inputs(self, node: gs.Node) -> list[gs.Tensor]:
        """The node's inputs that are data."""
        return [t for t in node.inputs if self.is_data(t)]

    def origins(self, tensor: gs.Tensor, stop: Callable[[gs.Node], bool]) -> list[gs.Node]:
        """The nearest producers upstream for which `stop` holds, along every data path."""
        return [producer for _, producer in self.ends(tensor, stop)]

    def ends(self, tensor: gs.Tensor, stop: Callable[[gs.Node], bool]) -> list[tuple[gs.Tensor, gs.Node]]:
        """`origins`, each with the one of its outputs that the path comes from."""
        found: list[tuple[gs.Tensor, gs.Node]] = []
        seen: set[str] = set()
        queue = [tensor]
        while queue:
            current = queue.pop()
            if current.name in seen:
                continue
            seen.add(current.name)
            for producer in current.inputs:
                if stop(producer):
                    found.append((current, producer))
                else:
                    queue.extend(self.data_inputs(producer))
        return found

    def reach(
        self, tensors: Iterable[gs.Tensor], through: frozenset[str], *, depthwise: bool = False
    ) -> dict[str, gs.Tensor]:
        """All tensors downstream through nodes of the operators `through` whose data inputs all lie in the region.

        A Clip that belongs to a Q/DQ pair is passed, too.

        Args:
            depthwise: pass depthwise Convs, too.

        Returns:
            The region by tensor name, the starting tensors included.
        """
        region = {t.name: t for t in tensors}
        queue = list(region.values())
        while queue:
            for node in queue.pop().outputs:
                passed = node.op in through or (depthwise and is_depthwise(node)) or is_grid_clip(node)
                if not passed or any(t.name not in region for t in self.data_inputs(node)):
                    continue
                for out in node.outputs:
                    if out.name and out.name not in region:
                        region[out.name] = out
                        queue.append(out)
        return region

    def joins(self, tensor: gs.Tensor) -> gs.Tensor | None:
        """The output of the residual Add that `tensor`'s branch ends in, or None.

        The branch may pass layout operators and norms; the Add's other operand is data from elsewhere.
        """
        region = self.reach([tensor], CARRIERS | NORMS)
        for inside in list(region.values()):
            for node in inside.outputs:
                data = self.data_inputs(node)
                if node.op == "Add" and len(data) == 2 and sum(t.name in region for t in data) == 1:
                    return node.outputs[0]
        return None


def readers_through(tensor: gs.Tensor, layout: Collection[str]) -> Iterator[gs.Node]:
    """Who reads a tensor's numbers, if through nodes of the operators `layout`; not who reads its shape alone.

    A layout node that no node reads, as where the caller gets what it makes, is a reader itself. Limits: the numbers
    are floats or codes; of those that say places or sizes, a node's result has none.
    """
    reached, queue = {id(tensor)}, [tensor]
    while queue:
        for reader in queue.pop().outputs:
            if reader.op in layout and any(made.outputs for made in reader.outputs):
                after = [made for made in reader.outputs if id(made) not in reached]
                reached.update(map(id, after))
                queue += after
            elif reader.op not in MEASURES:
                yield reader


def maker_through(tensor: gs.Tensor, layout: Collection[str]) -> gs.Node | None:
    """Who makes a tensor's numbers, if nodes of the operators `layout` lie between; None: they are given."""
    while tensor.inputs and tensor.inputs[0].op in layout:
        tensor = tensor.inputs[0].inputs[0]
    return tensor.inputs[0] if tensor.inputs else None


def is_depthwise(node: gs.Node) -> bool:
    """Whether a node is a convolution of each channel by itself."""
    weight = node.inputs[1] if node.op == "Conv" and len(node.inputs) > 1 else None
    return isinstance(weight, gs.Constant) and node.attrs.get("group", 1) > 1 and weight.shape[1] == 1


def has_subgraph(node: gs.Node) -> bool:
    """Whether a node is an If, a Loop or a Scan."""
    return any(isinstance(value, gs.Graph) for value in node.attrs.values())
