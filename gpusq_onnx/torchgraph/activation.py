"""Class activation maps and attention roll-out of a converted graph: what in an image decided.

    Grad-CAM    ReLU(sum_c a_c A_c), a_c = mean over positions of dy / dA_c: A is a tensor before the head, y the score;
                of a query, which looks at one place, a_c = dy / dA_c at each position (ODAM)
    roll-out    the product over layers of (mean over heads of attention + identity) / 2, its rows summing to 1: from
                the class token, or from all positions where there is none

A is the output of the last normalisation whose positions the score depends on: after the last block of a ViT only the
class token does, so that it is the norm before. A model without one gives the output of its last such convolution.
Positions lie in an image as their number says: tokens before them (class, distillation, registers) are left out.

Gradients pass Q/DQ pairs as in training (straight through). One image at a time: maps do not depend on the batch.
Source: Selvaraju et al., Grad-CAM, ICCV 2017; Zhao and Chan, ODAM, ICLR 2023; Abnar and Zuidema, ACL 2020. Limits:
roll-out wants every attention to be over the same tokens, not in windows and not fused into one node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpusq_onnx.errors import UnsupportedModelError
from gpusq_onnx.graph.model import Model, Node
from gpusq_onnx.graph.norms import norm_outputs
from gpusq_onnx.graph.structure import Structure, analyse
from gpusq_onnx.torchgraph import subjects
from gpusq_onnx.torchgraph.call import fed
from gpusq_onnx.torchgraph.convert import ancestors, convert
from gpusq_onnx.torchgraph.subjects import Seen

GRADCAM, ROLLOUT = "gradcam", "rollout"
METHODS = (GRADCAM, ROLLOUT)

_CONVOLUTIONS = 8  # the last ones, and as many of the pools, where no normalisation will do
_POOLS = frozenset(("ReduceMean", "ReduceMax", "GlobalAveragePool", "GlobalMaxPool", "AveragePool", "MaxPool"))
_EXTRA = 9  # tokens that are no positions: class, distillation, up to seven registers

Map = NDArray[np.float32]


@dataclass(frozen=True)
class Explanation:
    """One image explained: what the model sees, and the maps by method, [h, w], 0 to 1."""

    seen: Seen | None
    maps: dict[str, Map]


class Explainer:
    """Explains images with one model.

    Args:
        model: an image classifier, detector or segmenter; it is not changed.
        image: name and shape of its image input.
        sizes: the input that tells the images' sizes; "" where there is none.
        methods: of `METHODS`; none: Grad-CAM, and roll-out where that is possible.
        layer: the tensor to take maps from instead of the last normalisation's output.

    Attributes:
        layer: the tensor that maps are taken from; "" before the first image.

    Raises:
        UsageError: no tensor of the layer's name.
        UnsupportedModelError: no logits, no normalisation or convolution before them, no attention to roll out, or an
            operator that cannot be converted.
    """

    def __init__(
        self,
        model: Model,
        image: str,
        *,
        sizes: str = "",
        methods: Sequence[str] = (),
        layer: str | None = None,
    ) -> None:
        structure = analyse(model)
        self._image, self._sizes, self.layer = image, sizes, ""
        shapes = {spec.name: spec.shape for spec in model.inputs()}
        wanted = tuple(methods) or METHODS
        self._subjects = subjects.find(model, shapes[image], structure.shapes) if GRADCAM in wanted else None
        names = self._subjects.names if self._subjects else [spec.name for spec in model.outputs()]
        before = ancestors(model, names)
        self._places: list[str] = []
        if self._subjects:
            self._places = [layer] if layer else _places(model, before, queries=self._subjects.kind == "queries")
        self._weights: list[str] = []
        if ROLLOUT in methods or (not methods and self._subjects and self._subjects.kind == "logits"):
            late = _after_selection(before)
            known = {id(node) for node in before if id(node) not in late}
            cores = [core for core in structure.attentions if not (core.fused or core.learned)]
            cores = [core for core in cores if id(core.context) in known]
            self._weights = [str(core.context.inputs[0].name) for core in cores]
        self._must_roll = ROLLOUT in methods
        if self._must_roll and not self._weights:
            raise UnsupportedModelError(
                "there is no attention to roll out",
                expected="a Softmax between two MatMuls of data",
                found=_instead(structure),
                hint="leave --method out",
            )
        self._network = convert(model, outputs=names, taps=[*self._places, *self._weights])

    def explain(self, feed: Mapping[str, NDArray[Any]], asked: Sequence[Seen] = (), most: int = 1) -> list[Explanation]:
        """One image, each subject.

        Args:
            feed: the image, and its size, as rows [1, ...].
            asked: what the first model saw, which is looked for here; none: this is the first.
            most: queries of a detector.
        """
        rows = self._network.fixed or 1
        inputs = [fed(np.repeat(feed[name], rows, axis=0)) for name in self._network.inputs]
        inputs = [x.requires_grad_() if x.is_floating_point() else x for x in inputs]
        with torch.enable_grad():
            made = self._network.body(*inputs)
        values: dict[str, Tensor] = dict(zip(self._network.outputs, made, strict=True))
        size = _size(feed[self._image].shape)
        rolled = self._rolled(values, size)
        if self._subjects is None:
            return [Explanation(None, rolled)]
        sizes = feed.get(self._sizes)
        seen = asked or self._subjects.seen(values, sizes, most)
        found = []
        for one in seen:
            own = self._subjects.like(values, sizes, one) if asked else one
            score = self._subjects.score(values, one, own)
            found.append(Explanation(own, {GRADCAM: self._map(values, score, size), **rolled}))
        return found

    def _map(self, values: Mapping[str, Tensor], score: Tensor, size: tuple[int, int]) -> Map:
        """Grad-CAM at the layer, which the first image chooses."""
        flat = []
        for name in [self.layer] if self.layer else reversed(self._places):
            gradient: Tensor | None = torch.autograd.grad(score, values[name], retain_graph=True, allow_unused=True)[0]
            if gradient is None:
                continue
            here, slope = (on_grid(x.detach(), size, self._network.fixed or 1) for x in (values[name], gradient))
            if here is None or slope is None:
                continue
            if self.layer or len(self._places) == 1 or bool((slope != 0).any()):
                self.layer = name
                local = self._subjects is not None and self._subjects.kind == "queries"
                weight = slope if local else slope.mean(dim=(0, 1))
                return _to_one((here * weight).sum(dim=-1).clamp(min=0))
            flat.append(name)
        if flat:
            raise UnsupportedModelError(
                "the class does not depend on the image: its slope is zero wherever positions are left",
                expected="a trained classifier",
                found=f"zero at {', '.join(flat[:4])}",
                hint="are the weights of the classifier zero? --method rollout needs attention only",
            )
        raise UnsupportedModelError(
            "no layer has positions in the image that the class depends on",
            expected="tokens or a feature map whose number fits the image's aspect",
            found=", ".join(f"{name} {list(values[name].shape)}" for name in self._places[-4:]),
            hint="name one with --layer; gpusq-onnx check --taps all lists the tensors",
        )

    def _rolled(self, values: Mapping[str, Tensor], size: tuple[int, int]) -> dict[str, Map]:
        """The roll-out; nothing where it is not asked for and not possible."""
        maps = [_heads(values[name].detach(), self._network.fixed or 1) for name in self._weights]
        tokens = {x.shape[-1] for x in maps if x is not None}
        place = grid_of(min(tokens), size) if len(tokens) == 1 and all(x is not None for x in maps) else None
        if place is not None:
            return {ROLLOUT: roll_out([x for x in maps if x is not None], *place)}
        if self._must_roll:
            raise UnsupportedModelError(
                "the attention cannot be rolled out",
                expected="every attention over the same tokens, which are positions of the image",
                found=", ".join(dict.fromkeys(str(list(values[name].shape)) for name in self._weights)),
                hint="leave --method out",
            )
        return {}


def roll_out(attentions: Sequence[Tensor], extra: int, height: int, width: int) -> Map:
    """Of [heads, T, T] each, in the order of the layers; the map of the positions after `extra` tokens."""
    whole = torch.eye(attentions[0].shape[-1], dtype=torch.float64)
    for attention in attentions:
        mixed = (attention.double().mean(dim=0) + torch.eye(len(whole), dtype=torch.float64)) / 2
        whole = mixed / mixed.sum(dim=-1, keepdim=True) @ whole
    row = whole[0] if extra else whole.mean(dim=0)
    return _to_one(row[extra:].reshape(height, width), lowest=True)


def grid_of(tokens: int, size: tuple[int, int]) -> tuple[int, int, int] | None:
    """(tokens that are no positions, rows, columns) of T tokens of an image; None where no grid of its aspect fits.

    >>> grid_of(197, (224, 224)), grid_of(201, (224, 224)), grid_of(300, (640, 480)), grid_of(6, (32, 32))
    ((1, 14, 14), (5, 14, 14), (0, 20, 15), (2, 2, 2))
    """
    height, width = size
    for extra in range(min(_EXTRA, tokens - 3)):
        rows = round(((tokens - extra) * height / width) ** 0.5)
        if rows > 1 and (tokens - extra) % rows == 0 and fits(rows, (tokens - extra) // rows, size):
            return extra, rows, (tokens - extra) // rows
    return None


def fits(rows: int, columns: int, size: tuple[int, int]) -> bool:
    """Whether a grid may cover an image of (height, width): one step in both directions, to a whole row or column."""
    height, width = size
    return columns > 1 and abs(rows - columns * height / width) < 1 and rows <= height and columns <= width


def on_grid(x: Tensor, size: tuple[int, int], rows: int = 1) -> Tensor | None:
    """Row 0 of `rows` rows of tokens or of a feature map as [rows, columns, C]; None where no axes are positions.

    Takes [B, T, C], [T, B, C], [B, C, H, W] and [B, H, W, C].
    """
    if x.ndim > 2:
        x = x[:, 0] if x.shape[0] != rows and x.shape[1] == rows else x[0]
    while x.ndim > 2 and x.shape[0] == 1:
        x = x[0]
    if x.ndim == 3 and fits(x.shape[1], x.shape[2], size):
        return x.permute(1, 2, 0)
    if x.ndim == 3 and fits(x.shape[0], x.shape[1], size):
        return x
    place = grid_of(x.shape[0], size) if x.ndim == 2 else None
    return None if place is None else x[place[0] :].reshape(place[1], place[2], -1)


def _places(model: Model, before: Sequence[Node], *, queries: bool) -> list[str]:
    """Where maps may be taken, the best last: convolutions' outputs, what is pooled, then normalisations' outputs.

    Of a detector, those before it selects queries, after which there are no positions; what it pools may be queries.
    """
    late = _after_selection(before) if queries else set()
    usable = {str(tensor.name) for node in before if id(node) not in late for tensor in node.outputs}
    convolutions = [str(node.outputs[0].name) for node in before if node.op == "Conv" and id(node) not in late]
    pooled = [str(node.inputs[0].name) for node in before if node.op in _POOLS and not queries]
    norms = [name for name in norm_outputs(model) if name in usable]
    found = [*convolutions[-_CONVOLUTIONS:], *(name for name in pooled[-_CONVOLUTIONS:] if name in usable), *norms]
    if not found:
        raise UnsupportedModelError(
            "no norm layer is found to take a map from",
            expected="LayerNormalization, RMSNormalization, BatchNormalization, ..., or a Conv",
            found=", ".join(sorted({str(node.op) for node in before})[:12]),
            hint="name a tensor with --layer",
        )
    return list(dict.fromkeys(found))


def _instead(structure: Structure) -> str:
    """What there is where no attention can be rolled out."""
    if structure.attentions:
        return "fused Attention nodes"
    others = structure.other_softmaxes.items()
    return next((f"{name}: {reason}" for name, reason in others), "no Softmax of data")


def _after_selection(nodes: Sequence[Node]) -> set[int]:
    """The ids of those nodes that select positions, and of all that depends on them: it has no places in the image."""
    late, lost = set[int](), set[str]()
    for node in nodes:
        if node.op == "TopK" or any(tensor.name in lost for tensor in node.inputs):
            late.add(id(node))
            lost.update(str(tensor.name) for tensor in node.outputs)
    return late


def _heads(x: Tensor, rows: int) -> Tensor | None:
    """Attention of one image as [heads, T, T]; None where it is in windows, or between two kinds of tokens."""
    x = x.reshape(rows, -1, *x.shape[-2:])[0] if x.ndim == 3 and len(x) % rows == 0 else x[0] if x.ndim == 4 else x
    one = x.ndim == 3 and x.shape[-1] == x.shape[-2]
    return x if one else None


def _to_one(heat: Tensor, *, lowest: bool = False) -> Map:
    """The map from 0 to its largest value, as 0 to 1; `lowest`: from its least value."""
    heat = heat.double() - (heat.double().min() if lowest else 0.0)
    peak = float(heat.max())
    found: Map = (heat / peak if peak > 0 else heat).numpy().astype(np.float32)
    return found


def _size(shape: Sequence[int]) -> tuple[int, int]:
    """Height and width of an image [B, C, H, W] or [B, H, W, C]."""
    height, width = shape[2:] if shape[1] in (1, 3, 4) and shape[3] not in (1, 3) else shape[1:3]
    return int(height), int(width)
