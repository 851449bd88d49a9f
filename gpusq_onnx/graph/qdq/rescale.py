"""Write equalising factors into a graph without changing what it computes in floating point.

    in front, folded   LayerNorm(x) * scale + bias -> scale / s, bias / s; every reader's w * s; no node is added
    in front, a node   x -> Mul(1/s) -> readers with w * s; the Mul fuses with what made x (GELU) into one kernel
    after              MatMul(x, w / s) + bias / s -> Mul(s), fused with what follows

A pruned weight's zeros stay zero. The factors' maths is in `gpusq_onnx.quant.equalise`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from gpusq_onnx.graph.edits import Names
from gpusq_onnx.graph.model import Model, values_of
from gpusq_onnx.graph.sites import Site

Float32 = NDArray[np.float32]


def foldable_norm(tensor: gs.Tensor, sites: Sequence[Site]) -> gs.Node | None:
    """The LayerNormalization that makes `tensor` for these sites alone and whose parameters are its own, or None."""
    if len(tensor.inputs) != 1 or tensor.inputs[0].op != "LayerNormalization":
        return None
    norm = tensor.inputs[0]
    private = all(isinstance(p, gs.Constant) and len(p.outputs) == 1 and len(p.shape) == 1 for p in norm.inputs[1:3])
    alone = {id(node) for node in tensor.outputs} == {id(reader) for site in sites for reader in site.readers}
    return norm if private and alone else None


def rescale_input(model: Model, tensor: gs.Tensor, sites: Sequence[Site], factors: Float32) -> gs.Tensor:
    """Divide the sites' input by factors[k] and multiply their weights by it; returns the tensor they read now.

    A shared weight may have readers of other tensors: these are divided as well, each by a node of its own.
    """
    for site in sites:
        w = site.read()
        site.write((w.astype(np.float32) * factors).astype(w.dtype))
    norm = foldable_norm(tensor, sites)
    if norm is not None and all(tensor is not output for output in model.graph.outputs):
        for parameter in norm.inputs[1:3]:
            parameter.values = _times(values_of(parameter), 1 / factors)
        return tensor
    owner = {id(reader): site for site in sites for reader in site.readers}
    readers: dict[str, list[tuple[gs.Node, int]]] = {}
    for node in model.graph.nodes:
        if id(node) in owner:
            data = 1 - owner[id(node)].operand(node)
            readers.setdefault(node.inputs[data].name, []).append((node, data))
    divided = {name: _divide(model, nodes, (1 / factors).astype(sites[0].reads_as)) for name, nodes in readers.items()}
    return divided[tensor.name]


def _divide(model: Model, readers: Sequence[tuple[gs.Node, int]], factors: NDArray[Any]) -> gs.Variable:
    """Put one Mul before these readers of one tensor (node, input index; in graph order)."""
    names = Names(model)
    first, index = readers[0]
    tensor = first.inputs[index]
    scaled = gs.Variable(names.fresh(f"{tensor.name}_equalised"), factors.dtype, getattr(tensor, "shape", None))
    factor = gs.Constant(names.fresh(f"{tensor.name}_equalising"), factors)
    node = gs.Node("Mul", names.fresh(f"{tensor.name}_Equalise"), {}, [tensor, factor], [scaled])
    for reader, index in readers:
        reader.inputs[index] = scaled
    model.graph.nodes.insert(_position(model, first), node)
    return scaled


def rescale_output(model: Model, site: Site, factors: Float32) -> gs.Tensor:
    """Divide a one-reader site's rows and bias by factors[out] and multiply after it; returns the tensor between."""
    (reader,) = site.readers
    w, output, bias, names = site.read(), site.output, site.bias, Names(model)
    dtype = site.reads_as
    site.write((w.astype(np.float32) / factors[:, None]).astype(w.dtype))
    if bias is not None:
        bias.values = _times(values_of(bias), 1 / factors)
    elif reader.op == "Gemm" and len(reader.inputs) > 2:  # a bias after Identity or computed: others may read it
        _divide(model, [(reader, 2)], (1 / factors).astype(dtype))
    producer = output.inputs[0]
    small = gs.Variable(names.fresh(f"{output.name}_equalised"), dtype, getattr(output, "shape", None))
    producer.outputs[0] = small
    factor = gs.Constant(names.fresh(f"{output.name}_equalising"), factors.astype(dtype))
    node = gs.Node("Mul", names.fresh(f"{output.name}_Equalise"), {}, [small, factor], [output])
    model.graph.nodes.insert(_position(model, producer) + 1, node)
    return small


def _position(model: Model, node: gs.Node) -> int:
    return next(index for index, other in enumerate(model.graph.nodes) if other is node)


def own_bias(site: Site) -> gs.Constant | None:
    """The site's bias where nothing else reads it and the site has one reader: safe to change."""
    bias = site.bias
    return bias if bias is not None and len(bias.outputs) == 1 and len(site.readers) == 1 else None


def shift_bias(bias: gs.Constant, shift: NDArray[Any]) -> None:
    """Add shift[out] to a bias, in its own type."""
    old = values_of(bias)
    bias.values = (old.astype(np.float32) + shift.astype(np.float32)).astype(old.dtype)


def _times(values: NDArray[Any], factors: NDArray[Any]) -> NDArray[Any]:
    scaled: NDArray[Any] = (values.astype(np.float32) * factors).astype(values.dtype)
    return scaled
