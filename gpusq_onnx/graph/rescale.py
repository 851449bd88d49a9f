"""Write equalising factors into a graph without changing what it computes in floating point.

    in front, folded   LayerNorm(x) * scale + bias -> scale / s, bias / s; every reader's w * s; no node is added
    in front, a node   x -> Mul(1/s) -> readers with w * s; the Mul fuses with what made x (GELU) into one kernel
    behind             MatMul(x, w / s) + bias / s -> Mul(s), fused with what follows

A pruned weight's zeros stay zero. The factors' maths is in `gpusq_onnx.quant.equalise`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from gpusq_onnx.graph.model import Model, values_of
from gpusq_onnx.graph.sites import Site

Float32 = NDArray[np.float32]


def foldable_norm(tensor: gs.Tensor, sites: Sequence[Site]) -> gs.Node | None:
    """The LayerNormalization that makes `tensor` for these sites alone and whose parameters are its own, or None."""
    readers = {id(reader) for site in sites for reader in site.readers}
    if len(tensor.inputs) != 1 or tensor.inputs[0].op != "LayerNormalization":
        return None
    norm = tensor.inputs[0]
    parameters = norm.inputs[1:3]
    private = all(isinstance(p, gs.Constant) and len(p.outputs) == 1 and len(p.shape) == 1 for p in parameters)
    return norm if private and all(id(node) in readers for node in tensor.outputs) else None


def rescale_input(model: Model, tensor: gs.Tensor, sites: Sequence[Site], factors: Float32) -> gs.Tensor:
    """Divide the sites' input by factors[k] and multiply their weights by it; returns the tensor they read now."""
    for site in sites:
        w = site.read()
        site.write((w.astype(np.float32) * factors).astype(w.dtype))
    norm = foldable_norm(tensor, sites)
    if norm is not None:
        for parameter in norm.inputs[1:3]:
            parameter.values = _times(values_of(parameter), 1 / factors)
        return tensor
    readers = [reader for site in sites for reader in site.readers]
    dtype = sites[0].read().dtype
    scaled = gs.Variable(f"{tensor.name}_equalised", dtype, getattr(tensor, "shape", None))
    factor = gs.Constant(f"{tensor.name}_equalising", (1 / factors).astype(dtype))
    node = gs.Node("Mul", f"{tensor.name}_Equalise", {}, [tensor, factor], [scaled])
    for reader in readers:
        for index, read in enumerate(reader.inputs):
            if read is tensor:
                reader.inputs[index] = scaled
    position = next(i for i, n in enumerate(model.graph.nodes) if any(n is reader for reader in readers))
    model.graph.nodes.insert(position, node)
    return scaled


def rescale_output(model: Model, site: Site, factors: Float32) -> gs.Tensor:
    """Divide a site's rows and bias by factors[out] and multiply its output back; returns the tensor in between."""
    w, output, bias = site.read(), site.output, site.bias
    site.write((w.astype(np.float32) / factors[:, None]).astype(w.dtype))
    if bias is not None:
        bias.values = _times(values_of(bias), 1 / factors)
    producer = output.inputs[0]
    small = gs.Variable(f"{output.name}_equalised", w.dtype, getattr(output, "shape", None))
    producer.outputs[0] = small
    factor = gs.Constant(f"{output.name}_equalising", factors.astype(w.dtype))
    position = next(i for i, n in enumerate(model.graph.nodes) if n is producer)
    node = gs.Node("Mul", f"{output.name}_Equalise", {}, [small, factor], [output])
    model.graph.nodes.insert(position + 1, node)
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
