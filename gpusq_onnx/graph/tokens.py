"""The tokens that go through a transformer's blocks, and which of them are patches.

    [class] [patches]                      ViT, DeiT; more before them: distillation token, registers, text
    [class] [patches] [queries]            YOLOS
    [patches]                              SigLIP

The tensors come from a Concat of what is learned and what is data; the longest data part is the patches. Where no
such Concat is found the largest square number of tokens is, at the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import onnx_graphsurgeon as gs

from gpusq_onnx.graph.operators import NORMS, Is, operators
from gpusq_onnx.graph.structure import Structure

_ALONG = operators(Is.AFFINE | Is.RETYPES | Is.QUANTISES | Is.DEQUANTISES) | NORMS  # token by token


@dataclass(frozen=True)
class TokenLayout:
    """Tokens before the first block.

    Attributes:
        entry: the name of the tensor [B, count, d].
        patches: which of them are patches.
    """

    entry: str
    count: int
    patches: range


def token_layout(structure: Structure, maps: Sequence[str]) -> TokenLayout | None:
    """The tokens before the first block, where all compared maps have their shape; None where they do not."""
    among = [core for core in structure.attentions if not core.learned][:1]
    projs = [core.proj for core in among if core.proj is not None]
    joined = structure.flow.joins(projs[0].output) if projs else None
    if joined is None:
        return None
    branch = {str(node.outputs[0].name) for node in structure.flow.nodes if node is projs[0].readers[0]}
    entries = [
        tensor
        for tensor in joined.inputs[0].inputs
        if structure.flow.is_data(tensor)
        and not structure.flow.origins(tensor, lambda node: str(node.outputs[0].name) in branch)
    ]
    shape = structure.shapes.get(str(entries[0].name), ()) if len(entries) == 1 else ()
    if len(shape) != 3 or not isinstance(shape[1], int) or not isinstance(shape[2], int):
        return None
    if any(structure.shapes.get(name, ())[1:] != shape[1:] for name in maps) or shape[1] in (1, shape[2]):
        return None
    return TokenLayout(str(entries[0].name), shape[1], _patches(structure, entries[0], shape[1]))


def _patches(structure: Structure, entry: gs.Tensor, count: int) -> range:
    """The longest data part of the Concat that joined the tokens; else the largest square number, at the end."""
    tensor, found = entry, range(count)
    while tensor.inputs:
        producer = tensor.inputs[0]
        data = structure.flow.data_inputs(producer)
        lengths = [_length(structure, t) for t in producer.inputs]
        if producer.op == "Concat" and producer.attrs["axis"] in (1, -2) and lengths.count(None) <= 1:
            rest = len(found) - sum(length or 0 for length in lengths)
            ends = list(accumulate((rest if length is None else length for length in lengths), initial=found.start))
            parts = dict(zip((str(t.name) for t in producer.inputs), map(range, ends, ends[1:]), strict=True))
            tensor = max(data, key=lambda t: len(parts[t.name]))
            found = parts[tensor.name]
        elif len(data) == 1 and _length(structure, data[0]) in (None, len(found)) and producer.op in _ALONG:
            tensor = data[0]
        else:
            break
    return found if len(found) < count else range(count - math.isqrt(count) ** 2, count)


def _length(structure: Structure, tensor: gs.Tensor) -> int | None:
    """How many tokens [B, tokens, d] holds, where that is known."""
    shape = tensor.values.shape if isinstance(tensor, gs.Constant) else structure.shapes.get(str(tensor.name), ())
    return shape[1] if len(shape) == 3 and isinstance(shape[1], int) else None
