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
    for node, channels in _all_misplaced(model, in_blocks=False):
        found = f"scales along axis {_axis(node)}, the reduction"
        yield f"{node_label(node)}: {found}; the output channels are axis {channels}"


def block_axes(model: Model) -> Iterator[str]:
    """Blocks of a weight run along its reduction."""
    for node, _ in _all_misplaced(model, in_blocks=True):
        yield f"{node_label(node)}: blocks along axis {_axis(node)}, the output channels, and not the reduction"


def along_reduction(site: Site) -> bool:
    """Whether a weight has a scale for each row of the reduction, which no INT8 kernel applies, at any reader."""
    return any(_misplaced_before(reader, site.operand(reader), in_blocks=False) for reader in site.readers)


def _all_misplaced(model: Model, *, in_blocks: bool) -> Iterator[tuple[gs.Node, int]]:
    """The Q and DQ of weights whose scales lie as they must not, each with the axis of the output channels."""
    for graph in (model.graph, *model.graph.subgraphs(recursive=True)):
        for reader in graph.nodes:
            operand = next(iter(WEIGHTS.get(reader.op, ())), None)
            if operand is not None and is_standard(reader):
                yield from _misplaced_before(reader, operand, in_blocks=in_blocks)


def _misplaced_before(reader: gs.Node, operand: int, *, in_blocks: bool) -> list[tuple[gs.Node, int]]:
    found = weight_of(reader, operand)
    pairs = [node for node in found.trail if node.op in QDQ] if found is not None else []
    seen = ((node, _misplaced(node, reader, operand)) for node in pairs if bool(_block(node)) == in_blocks)
    return [(node, channels) for node, channels in seen if channels is not None]


def _misplaced(node: gs.Node, reader: gs.Node, operand: int) -> int | None:
    """The axis of the output channels, where scales run along it in blocks, or one a channel do not; else None."""
    (made,) = node.outputs
    scale, size, axis, seen = tuple(node.inputs[1].shape or ()), _block(node), _axis(node), trace(made)
    single = not scale or (not size and (len(scale) > 1 or scale == (1,)))
    if seen is None or single or not -len(seen.shape) <= axis < len(seen.shape):
        return None
    channels = view_from(made, reader, operand).stored_axis(0)
    return channels if (axis % len(seen.shape) == channels) == bool(size) else None


def _block(node: gs.Node) -> int:
    return int(node.attrs.get("block_size", 0))


def _axis(node: gs.Node) -> int:
    return int(node.attrs.get("axis", 1))
