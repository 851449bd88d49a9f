"""The views in which one network is trained: whole or cut at the compared maps, on all tokens or on some of them.

    apart   each part between two maps is fed the teacher's map instead of the student's: no gradient crosses, and every
            part learns its piece of the teacher's function at once, from clean inputs
    thin    a random subset of the patches' tokens goes through the blocks, the same one in both networks, besides the
            tokens before them (class, distillation, registers)

All views of a network hold the same parameters. Thin views are the graph from the first block on, with the number of
tokens changed in its reshapes, and are tried out on a batch before they are used.

Source: ours, after layer-wise reconstruction (BRECQ), all parts in one step; token dropping: PatchDropout
(arXiv 2208.07220). Limits: thin needs blocks of one [B, tokens, d] all through, and no table of tokens x tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, fx, nn

from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.structure import Structure
from gpusq_onnx.torchgraph.convert import convert
from gpusq_onnx.torchgraph.network import Network

_SHAPED = ("reshape", "broadcast_to", "view", "expand")
_STREAM = 2  # of random numbers, beside those of `augment`


class NetworkView(nn.Module):
    """One view of a network.

    Args:
        body: takes the graph's inputs, then the tokens before the first block (if there is `front`), then maps.
        front: makes these tokens from the graph's inputs; None for views on all tokens.
    """

    def __init__(self, body: Network, front: Network | None = None) -> None:
        super().__init__()
        self.body, self.front = body, front

    def forward(self, inputs: Sequence[Tensor], given: Sequence[Tensor], keep: Tensor | None) -> dict[str, Tensor]:
        """Outputs and taps by ONNX name; `keep` int64[k] are the tokens that go through."""
        if self.front is None:
            return self.body(*inputs, *given)  # type: ignore[no-any-return]
        (tokens,) = self.front(*inputs).values()
        return self.body(*inputs, tokens[:, keep], *given)  # type: ignore[no-any-return]


class NetworkViews(nn.Module):
    """All views of one network in one module, for whatever wraps modules; by (apart, thin)."""

    def __init__(self, views: Mapping[tuple[bool, bool], NetworkView]) -> None:
        super().__init__()
        self._order = list(views)
        self.members = nn.ModuleList(views.values())

    def forward(
        self, view: tuple[bool, bool], inputs: Sequence[Tensor], given: Sequence[Tensor], keep: Tensor | None
    ) -> dict[str, Tensor]:
        """As `NetworkView.forward`, of the view that is named."""
        return self.members[self._order.index(view)](inputs, given, keep)  # type: ignore[no-any-return]


class Tokens:
    """Which tokens there are before the first block, and which ones go through.

    Args:
        entry: the tensor's name.
        count: all tokens, of which the largest square number are patches, at the end.
        share: of the patches to keep.
    """

    def __init__(self, entry: str, count: int, share: float) -> None:
        self.entry, self.count = entry, count
        self.patches = math.isqrt(count) ** 2
        self.kept = count - self.patches + max(1, round(share * self.patches))

    def draw(self, seed: int, step: int) -> Tensor:
        """The tokens of one step, ascending: int64[kept]."""
        first = self.count - self.patches
        order = np.random.default_rng([seed, _STREAM, step]).permutation(self.patches)
        chosen = np.sort(order[: self.kept - first]) + first
        return torch.from_numpy(np.concatenate([np.arange(first), chosen]))


def tokens_of(structure: Structure, maps: Sequence[str], share: float) -> Tokens | None:
    """The tokens before the first block, where all compared maps have their shape; None where they do not."""
    projs = [attention.proj for attention in structure.attentions[:1] if attention.proj is not None]
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
    return Tokens(str(entries[0].name), shape[1], share)


def thin(
    model: Model,
    tokens: Tokens,
    outputs: Sequence[str],
    taps: Sequence[str],
    given: Sequence[str] = (),
    like: Network | None = None,
) -> NetworkView | None:
    """The thin view of a model; None where its graph does not allow it.

    Args:
        outputs, taps: as of `convert`.
        given: maps that are handed in.
        like: the whole network whose parameters are shared; None: no parameters, all constants.
    """
    roles = {"train": ()} if like is None else {}
    front = convert(model, outputs=[tokens.entry], **roles)
    body = convert(model, outputs=outputs, taps=taps, given=[tokens.entry, *given], **roles)
    _recount(body.body.graph, tokens.count, tokens.kept)
    body.body.recompile()
    if like is not None:
        front.share(like)
        body.share(like)
    view = NetworkView(body, front)
    return view if _works(view, model, tokens, taps, len(given)) else None


def _recount(graph: fx.Graph, old: int, new: int) -> None:
    """Put `new` where the arguments of reshapes say `old`."""

    def changed(value: fx.node.Argument) -> fx.node.Argument:
        if isinstance(value, (tuple, list)):
            return type(value)(changed(item) for item in value)
        return new if isinstance(value, int) and not isinstance(value, bool) and value == old else value

    for node in graph.nodes:
        target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        if node.op in ("call_function", "call_method") and target in _SHAPED:
            node.args = changed(node.args)


@torch.no_grad()
def _works(view: NetworkView, model: Model, tokens: Tokens, taps: Sequence[str], given: int) -> bool:
    """Whether the view runs on two images and every map has as many tokens as it should."""
    batch = 2 * (view.body.fixed or 1)
    inputs = [torch.zeros(batch, *spec.shape[1:]) for spec in model.inputs() if spec.name in view.body.inputs]  # type: ignore[arg-type]
    assert view.front is not None
    try:
        width = next(iter(view.front(*inputs).values())).shape[2]
        found = view(inputs, [torch.zeros(batch, tokens.kept, width)] * given, tokens.draw(0, 0))
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False
    return all(tuple(found[name].shape) == (batch, tokens.kept, width) for name in taps)
