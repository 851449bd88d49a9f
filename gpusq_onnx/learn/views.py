"""The views in which one network is trained: whole or cut at the compared maps, on all tokens or on some of them.

    apart   each part between two maps is fed the teacher's map instead of the student's: no gradient crosses, and every
            part learns its piece of the teacher's function at once, from clean inputs
    thin    a random subset of the patches' tokens goes through the blocks, the same one in both networks, besides the
            tokens around them (class, distillation, registers, a detector's queries)

All views of a network hold the same parameters. Thin views are the graph from the first block on, with the number of
tokens changed in its reshapes, and are tried out on a batch before they are used: a slice of certain tokens, say from
number 197 on, would find others there, or none.

Source: ours, after layer-wise reconstruction (BRECQ), all parts in one step; token dropping: PatchDropout
(arXiv 2208.07220). Limits: thin needs blocks of one [B, tokens, d] all through, and no table of tokens x tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, fx, nn

from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.shapes import Shapes
from gpusq_onnx.graph.tokens import TokenLayout
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
    """Which tokens go through.

    Args:
        layout: all that there are before the first block.
        share: of the patches to keep.
    """

    def __init__(self, layout: TokenLayout, share: float) -> None:
        self.layout, patches = layout, len(layout.patches)
        self.kept = layout.count - patches + max(1, round(share * patches))

    def draw(self, seed: int, step: int) -> Tensor:
        """The tokens of one step, ascending: int64[kept]."""
        count, patches = self.layout.count, self.layout.patches
        order = np.random.default_rng([seed, _STREAM, step]).permutation(len(patches))
        chosen = np.sort(order[: self.kept - count + len(patches)]) + patches.start
        return torch.from_numpy(np.concatenate([np.arange(patches.start), chosen, np.arange(patches.stop, count)]))


def thin(
    model: Model,
    tokens: Tokens,
    shapes: Shapes,
    outputs: Sequence[str],
    taps: Sequence[str],
    given: Sequence[str] = (),
    like: Network | None = None,
) -> NetworkView | None:
    """The thin view of a model; None where its graph does not allow it.

    Args:
        shapes: of the model's tensors on all tokens, for one image.
        outputs, taps: as of `convert`.
        given: maps that are handed in.
        like: the whole network whose parameters are shared; None: no parameters, all constants.
    """
    roles = {"train": ()} if like is None else {}
    front = convert(model, outputs=[tokens.layout.entry], **roles)
    body = convert(model, outputs=outputs, taps=taps, given=[tokens.layout.entry, *given], **roles)
    _recount(body.body.graph, tokens.layout.count, tokens.kept)
    body.body.recompile()
    if like is not None:
        front.share(like)
        body.share(like)
    view = NetworkView(body, front)
    whole = {name: shapes.get(name, ()) for name in outputs}
    return view if _works(view, model, tokens, taps, whole, len(given)) else None


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
def _works(view: NetworkView, model: Model, tokens: Tokens, taps: Sequence[str], whole: Shapes, given: int) -> bool:
    """Whether the view runs on two images, every map has as many tokens as it should, and every output is as long."""
    batch = 2 * (view.body.fixed or 1)
    inputs = [torch.zeros(batch, *spec.shape[1:]) for spec in model.inputs() if spec.name in view.body.inputs]  # type: ignore[arg-type]
    assert view.front is not None
    try:
        width = next(iter(view.front(*inputs).values())).shape[2]
        found = view(inputs, [torch.zeros(batch, tokens.kept, width)] * given, tokens.draw(0, 0))
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False
    counts = {tokens.layout.count: tokens.kept}
    return all(tuple(found[name].shape) == (batch, tokens.kept, width) for name in taps) and all(
        not isinstance(length, int) or now in (length, counts.get(length))
        for name, shape in whole.items()
        for length, now in zip(shape[1:], found[name].shape[1:], strict=False)
    )
