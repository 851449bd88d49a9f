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

from gpusq_onnx.runtime.kernels.attention import attention
from gpusq_onnx.torchgraph.lowering.codes import add_scale, codes_at
from gpusq_onnx.torchgraph.lowering.linears import is_plain, only_reader, quantiser_of, scale_at, takes

_LAYOUT = (torch.permute, torch.reshape, torch.transpose, torch.flatten)


def replace_attention(body: fx.GraphModule, codes: dict[fx.Node, fx.Node], dtype: torch.dtype) -> int:
    """Put every match on the kernel, in place; how many there were."""
    found = 0
    for node in list(body.graph.nodes):
        parts = _match(body, node)
        if parts is None:
            continue
        q, k, p, v = parts
        last = _quantiser_behind(body, node)
        given = [codes_at(body, part, codes) for part in (q, k, v)]
        with body.graph.inserting_before(node):
            scales = add_scale(body, torch.stack([scale_at(body, part) for part in (q, k, p, v)]))
            out = None if last is None else add_scale(body, scale_at(body, last))
            made = body.graph.call_function(transposed_attention, (*given, scales, out, dtype))
        node.replace_all_uses_with(made)
        if last is not None:
            codes[last] = last.args[0]  # type: ignore[assignment]  # the layout before it carries codes now
        found += 1
    return found


def transposed_attention(
    q: Tensor, k: Tensor, v: Tensor, scales: Tensor, out: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """`kernels.attention` for keys that come as [B, H, d, T]."""
    return attention(q, k.transpose(2, 3), v, scales, out, dtype)


def _match(body: fx.GraphModule, node: fx.Node) -> tuple[Any, Any, Any, Any] | None:
    """The quantisers of q, kᵀ, the probabilities and v, where `node` is the product with v."""
    if node.target is not torch.matmul:
        return None
    p: Any = node.args[0]
    v: Any = node.args[1]
    softmax = _source(body, p)
    if softmax is None or softmax.target is not torch.softmax or len(softmax.users) > 1:
        return None
    scores, axis = softmax.args[0], softmax.args[1]
    if not isinstance(scores, fx.Node) or scores.target is not torch.matmul or len(scores.users) > 1:
        return None
    q: Any = scores.args[0]
    k: Any = scores.args[1]
    if axis not in (-1, 3) or any(_source(body, part) is None for part in (q, k, v)):
        return None
    ranks = [len(part.meta["noted"]) for part in (q, k, v)]
    same = len({part.meta["noted"][:2] for part in (q, k, v)}) == 1
    return (q, k, p, v) if ranks == [4, 4, 4] and same and len(p.users) == 1 else None


def _source(body: fx.GraphModule, node: Any) -> fx.Node | None:
    """What a plain quantiser's node quantises; None: it is none."""
    quantiser = quantiser_of(body, node) if isinstance(node, fx.Node) else None
    if quantiser is None or not is_plain(quantiser) or quantiser.weight:
        return None
    source = node.args[0]
    return source if isinstance(source, fx.Node) else None


def _quantiser_behind(body: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """The quantiser that reads `node` through layout operators, all of them with one reader."""
    reader = only_reader(node)
    while reader is not None and reader.target in _LAYOUT:
        reader = only_reader(reader)
    return reader if reader is not None and takes(body, reader) else None
