"""Along which axis the scales of a weight lie, seen from the product that reads it: a rule of `graph.invariants`.

    one a channel    along the output channels. Along the reduction TensorRT's parser takes them, and no INT8 kernel can
                     apply them: the product runs in float, and codes read as those of channels are other numbers
    in blocks        along the reduction

Layout between DequantizeLinear and product (Transpose, Squeeze, Split) is followed.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_graphsurgeon as gs

from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.operators import QDQ, WEIGHTS, is_standard
from gpusq_onnx.graph.trace import trace, view_from, weight_of
from gpusq_onnx.graph.wording import node_label


def weight_axes(model: Model) -> Iterator[str]:
    """Scales of a weight run along its output channels, blocks along the reduction."""
    for graph in (model.graph, *model.graph.subgraphs(recursive=True)):
        for reader in graph.nodes:
            operand = next(iter(WEIGHTS.get(reader.op, ())), None)
            found = weight_of(reader, operand) if operand is not None and is_standard(reader) else None
            for node in found.trail if found is not None else ():
                if node.op in QDQ:
                    yield from _wrong(node, reader, operand or 0)


def _wrong(node: gs.Node, reader: gs.Node, operand: int) -> Iterator[str]:
    (made,) = node.outputs
    scale, size = tuple(node.inputs[1].shape or ()), node.attrs.get("block_size", 0)
    seen, axis = trace(made), node.attrs.get("axis", 1)
    if seen is None or not scale or (not size and len(scale) > 1) or not -len(seen.shape) <= axis < len(seen.shape):
        return
    channels = view_from(made, reader, operand).stored_axis(0)
    fits = (axis % len(seen.shape) == channels) != bool(size)
    if size and not fits:
        yield f"{node_label(node)}: blocks along axis {axis}, the output channels, and not the reduction"
    elif not fits and scale != (1,):
        yield f"{node_label(node)}: scales along axis {axis}, the reduction; the output channels are axis {channels}"
