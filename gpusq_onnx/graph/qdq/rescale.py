"""Write equalising factors and offsets into a graph without changing what it computes in floating point.

    before, folded     LayerNorm(x) * scale + bias -> scale / s, bias / s; every reader's w * s; no node is added
    before, a node     x -> Mul(1/s) -> readers with w * s; the Mul fuses with what made x (GELU) into one kernel
    centred            x -> Add(-c) -> readers with bias + c sum_k w_k; the Add fuses with what made x, too
    after              MatMul(x, w / s) + bias / s -> Mul(s), fused with what follows

A pruned weight's zeros stay zero. The factors' maths is in `gpusq_onnx.quant.equalise`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from gpusq_onnx.graph.edits import Names, position
from gpusq_onnx.graph.model import Model, values_of
from gpusq_onnx.graph.operators import MEASURES
from gpusq_onnx.graph.sites import Site

Float32 = NDArray[np.float32]


def foldable_norm(tensor: gs.Tensor, sites: Sequence[Site]) -> gs.Node | None:
    """The LayerNormalization whose parameters are its own and whose result no one but these sites reads, or None.

    Who reads its shape does not count: exports with an open batch do.
    """
    if len(tensor.inputs) != 1 or tensor.inputs[0].op != "LayerNormalization":
        return None
    norm = tensor.inputs[0]
    private = all(isinstance(p, gs.Constant) and len(p.outputs) == 1 and len(p.shape) == 1 for p in norm.inputs[1:3])
    read = {id(node) for node in tensor.outputs if node.op not in MEASURES}
    alone = read == {id(reader) for site in sites for reader in site.readers}
    return norm if private and alone else None


def rescale_input(model: Model, tensor: gs.Tensor, sites: Sequence[Site], factors: Float32, names: Names) -> gs.Tensor:
    """Divide the sites' input by factors[k] and multiply their weights by it; returns the tensor they read now.

    A shared weight may have readers of other tensors: these are divided as well, each by a node of its own.
    """
    for site in sites:
        w = site.read()
        site.write((w.astype(np.float32, copy=False) * factors).astype(w.dtype, copy=False))
    norm = foldable_norm(tensor, sites)
    if norm is not None and all(tensor is not output for output in model.graph.outputs):
        for parameter in norm.inputs[1:3]:
            parameter.values = _times(values_of(parameter), 1 / factors)
        return tensor
    readers: dict[str, list[tuple[gs.Node, int]]] = {}
    for node, data in _data_inputs(model, sites):
        readers.setdefault(node.inputs[data].name, []).append((node, data))
    inverse = (1 / factors).astype(sites[0].reads_as)
    divided = {name: _divide(model, nodes, inverse, names) for name, nodes in readers.items()}
    return divided[tensor.name]


def offset_input(model: Model, tensor: gs.Tensor, sites: Sequence[Site], offset: float, names: Names) -> gs.Tensor:
    """Subtract `offset` from the sites' one input, and change their biases so that their outputs stay the same.

    Args:
        sites: each with a bias of its own (`own_bias`).

    Returns:
        The tensor that they read now.
    """
    for site in sites:
        bias = own_bias(site)
        assert bias is not None
        shift_bias(bias, offset * site.read().sum(axis=1, dtype=np.float64))
    below = np.full(sites[0].k, -offset, sites[0].reads_as)
    return _insert(model, _data_inputs(model, sites), "Add", below, ("centred", "centring", "Centre"), names)


def _data_inputs(model: Model, sites: Sequence[Site]) -> list[tuple[gs.Node, int]]:
    """All readers of the sites' weights, in graph order, each with the index of its data input."""
    owner = {id(reader): site for site in sites for reader in site.readers}
    return [(node, 1 - owner[id(node)].operand(node)) for node in model.graph.nodes if id(node) in owner]


def _divide(model: Model, readers: Sequence[tuple[gs.Node, int]], factors: NDArray[Any], names: Names) -> gs.Variable:
    """Put one Mul before these readers of one tensor (node, input index; in graph order)."""
    return _insert(model, readers, "Mul", factors, ("equalised", "equalising", "Equalise"), names)


def _insert(
    model: Model,
    readers: Sequence[tuple[gs.Node, int]],
    op: str,
    values: NDArray[Any],
    words: tuple[str, str, str],
    names: Names,
) -> gs.Variable:
    """Put one node with a constant before these readers; `words` name its output, its constant and itself."""
    first, index = readers[0]
    tensor = first.inputs[index]
    made = gs.Variable(names.fresh(f"{tensor.name}_{words[0]}"), values.dtype, getattr(tensor, "shape", None))
    constant = gs.Constant(names.fresh(f"{tensor.name}_{words[1]}"), values)
    node = gs.Node(op, names.fresh(f"{tensor.name}_{words[2]}"), {}, [tensor, constant], [made])
    for reader, index in readers:
        reader.inputs[index] = made
    model.graph.nodes.insert(position(model.graph.nodes, first), node)
    return made


def rescale_output(model: Model, site: Site, factors: Float32, names: Names) -> gs.Tensor:
    """Divide a one-reader site's rows and bias by factors[out] and multiply after it; returns the tensor between."""
    (reader,) = site.readers
    w, output, bias = site.read(), site.output, site.bias
    dtype = site.reads_as
    site.write((w.astype(np.float32, copy=False) / factors[:, None]).astype(w.dtype, copy=False))
    if bias is not None:
        bias.values = _times(values_of(bias), 1 / factors)
    elif reader.op == "Gemm" and len(reader.inputs) > 2:  # a bias after Identity or computed: others may read it
        _divide(model, [(reader, 2)], (1 / factors).astype(dtype), names)
    producer = output.inputs[0]
    small = gs.Variable(names.fresh(f"{output.name}_equalised"), dtype, getattr(output, "shape", None))
    producer.outputs[0] = small
    factor = gs.Constant(names.fresh(f"{output.name}_equalising"), factors.astype(dtype))
    node = gs.Node("Mul", names.fresh(f"{output.name}_Equalise"), {}, [small, factor], [output])
    model.graph.nodes.insert(position(model.graph.nodes, producer) + 1, node)
    return small


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
