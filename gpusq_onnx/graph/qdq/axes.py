"""Along which axis the scales of a weight lie, seen from the product that reads it: two rules.

    one a channel    along the output channels. Along the reduction TensorRT's parser and builder take them, and no INT8
                     kernel can apply them: the product runs in float. Tolerated in a model that comes in
    in blocks        along the reduction

Layout between DequantizeLinear and product (Transpose, Squeeze, Split) is followed.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_graphsurgeon as gs

from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.operators import QDQ, WEIGHTS, is_standard
from gpusq_onnx.graph.sites import Site
from gpusq_onnx.graph.trace import trace, view_from, weight_of
from gpusq_onnx.graph.wording import node_label


def weight_axes(model: Model) -> Iterator[str]:
    """Scales of a weight's channels run along its output channels."""
    yield from _found(model, in_blocks=False)


def block_axes(model: Model) -> Iterator[str]:
    """Blocks of a weight run along its reduction."""
    yield from _found(model, in_blocks=True)


def _found(model: Model, *, in_blocks: bool) -> Iterator[str]:
    for graph in (model.graph, *model.graph.subgraphs(recursive=True)):
        for reader in graph.nodes:
            operand = next(iter(WEIGHTS.get(reader.op, ())), None)
            found = weight_of(reader, operand) if operand is not None and is_standard(reader) else None
            for node in found.trail if found is not None else ():
                if node.op in QDQ and bool(node.attrs.get("block_size", 0)) == in_blocks:
                    yield from _wrong(node, reader, operand or 0)


def along_reduction(site: Site) -> bool:
    """Whether a weight has a scale for each row of the reduction, which no INT8 kernel applies."""
    pairs = [node for node in site.trail if node.op in QDQ and not node.attrs.get("block_size", 0)]
    return any(True for reader in site.readers for node in pairs for _ in _wrong(node, reader, site.operand(reader)))


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
