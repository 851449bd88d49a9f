"""Quantised attention of a converted network, found in its fx graph and put on `runtime.kernels.attention`.

    matmul(Quantiser(q), Quantiser(kᵀ)) -> softmax -> Quantiser -> matmul(., Quantiser(v)) [-> layout -> Quantiser]

q, kᵀ and v are [B, H, T, d], [B, H, d, T] and [B, H, T, d]. Layout operators do not touch values, so the quantiser
after them moves into the kernel, and codes are what is laid out anew. Limits: a mask or a bias between product and
softmax is not matched; such attention stays as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from gpusq_onnx.graph.attention import follow
from gpusq_onnx.runtime.kernels.attention import attention
from gpusq_onnx.torchgraph.fx_nodes import FxNodes, only_reader
from gpusq_onnx.torchgraph.lowering.codes import add_scale, codes_at
from gpusq_onnx.torchgraph.lowering.linears import is_plain, quantiser_of, scale_at, takes

_LAYOUT = (torch.permute, torch.reshape, torch.transpose, torch.flatten)


def replace_attention(body: fx.GraphModule, codes: dict[fx.Node, fx.Node], dtype: torch.dtype) -> int:
    """Put every match on the kernel, in place; how many there were."""
    found = 0
    for node in list(body.graph.nodes):
        matched = _match(body, node)
        if matched is None:
            continue
        context, (q, k, v, p) = matched
        last = _quantiser_after(body, context)
        given = [codes_at(body, part, codes) for part in (q, k, v)]
        with body.graph.inserting_before(context):
            scales = add_scale(body, torch.stack([scale_at(body, part) for part in (q, k, p, v)]))
            out = None if last is None else add_scale(body, scale_at(body, last))
            made = body.graph.call_function(transposed_attention, (*given, scales, out, dtype))
        context.replace_all_uses_with(made)
        if last is not None:
            codes[last] = last.args[0]  # type: ignore[assignment]  # the layout before it carries codes now
        found += 1
    return found


def transposed_attention(
    q: Tensor, k: Tensor, v: Tensor, scales: Tensor, out: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """`kernels.attention` for keys that come as [B, H, d, T]."""
    return attention(q, k.transpose(2, 3), v, scales, out, dtype)


def _match(body: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, tuple[fx.Node, ...]] | None:
    """The product with v, and the quantisers of q, kᵀ, v and the probabilities, where `node` is the product of q."""

    def rounds(one: Any) -> bool:
        quantiser = quantiser_of(body, one) if isinstance(one, fx.Node) else None
        plain = quantiser is not None and is_plain(quantiser) and not quantiser.weight
        return plain and isinstance(one.args[0], fx.Node)

    found = follow(FxNodes(rounds), node)
    if isinstance(found, str) or found.factors or found.mask is not None or len(found.quantisers) != 1:
        return None
    parts = (*found.scores.args[:2], found.context.args[1])
    if not all(map(rounds, parts)):
        return None
    shapes = [part.meta["noted"] for part in parts]
    fits = [len(shape) for shape in shapes] == [4, 4, 4] and len({shape[:2] for shape in shapes}) == 1
    return (found.context, (*parts, found.quantisers[0])) if fits else None


def _quantiser_after(body: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """The quantiser that reads `node` through layout operators, all of them with one reader."""
    reader = only_reader(node)
    while reader is not None and reader.target in _LAYOUT:
        reader = only_reader(reader)
    return reader if reader is not None and takes(body, reader) else None
