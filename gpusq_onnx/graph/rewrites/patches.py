"""A convolution that cuts its image into tiles, as the matrix product that it is.

    x[B, C, h*P, w*Q] -> Reshape [B, C, h, P, w, Q] -> Transpose [B, h, w, C, P, Q] -> Reshape [B, h, w, K]
                      -> MatMul W[K, O] -> Add b[O] -> Transpose [B, O, h, w]                     K = C*P*Q

The same sums in another order. TensorRT groups a Conv's 2:4 along C, which has 3 channels in a patch embedding; the
product reduces over K = 48 (Swin) or 768 (DeiT), as the paper's implicit GEMM does.

Source: GPUSQ-ViT section 3.2; ONNX Conv-11. Limits: NCHW, two spatial axes whose size the file declares as a multiple
of the tile; no groups, no dilation, no padding; a weight that is an initializer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from gpusq_onnx.graph.model import Model, values_of
from gpusq_onnx.graph.rewrites.rule import Editor, Known, Layouts, Rule, Unfit, replace
from gpusq_onnx.graph.shapes import infer_shapes
from gpusq_onnx.graph.sites import Site
from gpusq_onnx.graph.structure import Structure


@dataclass(frozen=True)
class Tiles:
    """How the image is cut: channels, rows and columns of tiles, and a tile's height and width."""

    channels: int
    rows: int
    columns: int
    height: int
    width: int

    @property
    def k(self) -> int:
        """What each output reduces over."""
        return self.channels * self.height * self.width


def is_tiling(site: Site) -> bool:
    """Whether a site is a convolution of more than one element, with one reader at least whose stride is its kernel."""
    kernel = list(site.weight.shape[2:])
    return site.op == "Conv" and max(kernel) > 1 and any(_strides(node) == kernel for node in site.readers)


def _strides(node: gs.Node) -> list[int]:
    return [int(step) for step in node.attrs.get("strides", ())]


def tiles_of(node: gs.Node, known: Known) -> Tiles:
    """How a tiling convolution cuts its image. Raises Unfit with the reason where it cannot be a product."""
    weight, attrs = node.inputs[1], node.attrs
    if not isinstance(weight, gs.Constant) or len(weight.shape) != 4:
        raise Unfit("its weight is no initializer over two axes of an image")
    if _strides(node) != list(weight.shape[2:]):
        raise Unfit(f"another Conv reads its weight with strides of {_strides(node) or 1}, which are not its kernel")
    if attrs.get("group", 1) != 1 or any(step != 1 for step in attrs.get("dilations", ())):
        raise Unfit("it has groups or dilation")
    if any(attrs.get("pads", ())):
        raise Unfit(f"it pads its image by {list(attrs['pads'])}")
    _, channels, *size = known.shape(node.inputs[0])
    tile = [int(n) for n in weight.shape[2:]]
    counts = []
    for name, length, part in zip(("height", "width"), size, tile, strict=True):
        if not isinstance(length, int):
            raise Unfit(f"its image's {name} is open: export the model with a fixed size")
        if length % part:
            raise Unfit(f"tiles of {part} do not divide its image's {name} of {length}")
        counts.append(length // part)
    assert channels == weight.shape[1] or not isinstance(channels, int), node.name
    return Tiles(int(weight.shape[1]), counts[0], counts[1], tile[0], tile[1])


def rewrite_tiles(node: gs.Node, tiles: Tiles, editor: Editor) -> gs.Tensor:
    """The product that a tiling convolution is."""
    t, weight = tiles, node.inputs[1]
    cut = editor.reshape(node.inputs[0], [0, t.channels, t.rows, t.height, t.columns, t.width])
    rows = editor.reshape(editor.transpose(cut, (0, 2, 4, 1, 3, 5)), [0, t.rows, t.columns, t.k])
    matrix: NDArray[np.generic] = values_of(weight).reshape(-1, t.k).T
    made: gs.Tensor = editor.add("MatMul", rows, editor.layout_of(weight, matrix))
    if len(node.inputs) > 2 and not node.inputs[2].is_empty():
        made = editor.add("Add", made, node.inputs[2])
    return editor.transpose(made, (0, 3, 1, 2))


DOES = "a MatMul over whole patches, which can be 2:4 and quantised"


def declared(model: Model, structure: Structure) -> Known:
    """What the file itself says of shapes: a size that a run has shown is not fixed."""
    shapes, types = infer_shapes(model, one_image=False)
    return Known(shapes, types, structure.flow)


def to_product(model: Model, site: Site, known: Known) -> None:
    """Rewrite a site's convolutions."""
    rule, layouts = Rule("Conv", DOES, tiles_of, rewrite_tiles), Layouts()
    for node in site.readers:
        replace(model, node, rule, tiles_of(node, known), known.type(node.outputs[0]), layouts)
