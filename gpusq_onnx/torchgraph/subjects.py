"""What an activation map explains: a class, a query and its class, or a class over the pixels that show it.

    logits [B, C]                            the image's class
    queries [B, Q, C] with boxes [B, Q, 4]   a query's class; where a detector selects at its end, the tensors before
    pixels [B, C, H, W]                      a class over the pixels where the first model sees it (Seg-Grad-CAM)

Of an output that an ArgMax made, what the ArgMax reads is taken. A query of one model is paired with that query of
another whose box overlaps most (times its score for the class): two models order their queries differently.

Source: Selvaraju et al., Grad-CAM, ICCV 2017; Vinogradova et al., Seg-Grad-CAM, AAAI 2020. Limits: outputs are
distinguished by their shapes (`tasks.kinds`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpusq_onnx.errors import NothingMatched, UnsupportedModelError
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.shapes import Shapes, is_float
from gpusq_onnx.tasks.boxes import overlaps
from gpusq_onnx.tasks.kinds import Shape, normalised, output_kinds, per_class
from gpusq_onnx.torchgraph.prefix import trainable_prefix

_AFTER_LOGITS = frozenset("Sigmoid Softmax Flatten Reshape Squeeze Unsqueeze Identity Cast Mul Sub Add Concat".split())
_BEFORE_CLASSES = frozenset("Cast Squeeze Unsqueeze Identity Resize".split())

Values = Mapping[str, Tensor]


@dataclass(frozen=True)
class Seen:
    """What a model sees in one image.

    Attributes:
        label: its best class; of pixels, the class that is explained.
        probability: of that class, by softmax or sigmoid; of pixels, the share of the image.
        query: of a detector.
        box: of the query: x0, y0, x1, y1 as shares of the image.
        mask: of a segmenter: the class of each pixel, [H, W].
    """

    label: int
    probability: float
    query: int | None = None
    box: tuple[float, ...] | None = None
    mask: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Subjects:
    """What can be explained of one model.

    Attributes:
        kind: of the logits.
        logits: the tensor that holds them; of queries, those that may: the last that is [B, Q, C] does.
        boxes: the same of boxes; in pixels of the image as it was where `finished`.
    """

    kind: Literal["logits", "queries", "pixels"]
    logits: Sequence[str]
    boxes: Sequence[str] = ()
    finished: bool = False

    @property
    def names(self) -> list[str]:
        """The tensors to ask for."""
        return [*self.logits, *self.boxes]

    def seen(self, values: Values, sizes: NDArray[Any] | None, most: int) -> list[Seen]:
        """The model's own view of row 0: one, or of a detector its `most` best queries."""
        x = self._logits(values)
        if self.kind == "logits":
            p = probabilities(x)
            label = int(p.argmax())
            return [Seen(label, float(p[label]))]
        if self.kind == "pixels":
            mask = x.argmax(dim=0)
            label = int(torch.bincount(mask.reshape(-1)).argmax())
            return [Seen(label, float((mask == label).double().mean()), mask=mask.numpy())]
        p, boxes = _query_scores(x), self._boxes(values, sizes)
        best = torch.argsort(p.max(dim=1).values, descending=True)[:most].tolist()
        return [_of_query(p, boxes, query) for query in best]

    def like(self, values: Values, sizes: NDArray[Any] | None, other: Seen) -> Seen:
        """The model's view of what another model saw."""
        if self.kind == "logits":
            return self.seen(values, sizes, 1)[0]
        if self.kind == "pixels":
            mask = self._logits(values).argmax(dim=0)
            return Seen(other.label, float((mask == other.label).double().mean()), mask=mask.numpy())
        p, boxes = _query_scores(self._logits(values)), self._boxes(values, sizes)
        score = p[:, other.label].double()
        if boxes is not None and other.box is not None:
            score = score * torch.from_numpy(overlaps(boxes, np.array(other.box)) + 1e-3)
        return _of_query(p, boxes, int(score.argmax()))

    def score(self, values: Values, asked: Seen, own: Seen) -> Tensor:
        """What is explained, as a number: the class that was `asked` for, at this model's `own` query."""
        x = self._logits(values)
        if self.kind == "logits":
            return x[asked.label]
        if self.kind == "queries":
            return x[own.query, asked.label]
        assert asked.mask is not None
        return x[asked.label][torch.from_numpy(asked.mask == asked.label)].sum()

    def _logits(self, values: Values) -> Tensor:
        """Row 0 of the logits."""
        if self.kind != "queries":
            return values[self.logits[0]][0]
        fit = [values[name] for name in self.logits if values[name].ndim == 3 and values[name].shape[-1] > 1]
        if not fit:
            raise _nothing({name: list(values[name].shape) for name in self.logits})
        return fit[-1][0]

    def _boxes(self, values: Values, sizes: NDArray[Any] | None) -> NDArray[np.float64] | None:
        """Row 0 of the boxes, [Q, 4], as shares of the image; None where they are not found."""
        fit = [values[name] for name in self.boxes if values[name].ndim == 3 and values[name].shape[-1] == 4]
        if not fit or (self.finished and sizes is None):
            return None
        found = fit[0][0].detach().double().numpy()
        if self.finished:
            assert sizes is not None
            return np.asarray(found / np.tile(sizes[0].astype(np.float64), 2))
        centre, extent = found[:, :2], found[:, 2:]
        return np.concatenate([centre - extent / 2, centre + extent / 2], axis=1)


def find(model: Model, image: Shape, shapes: Shapes) -> Subjects:
    """What `model` says that can be explained; `image`: the shape of its image input, `shapes`: of its tensors.

    Raises:
        UnsupportedModelError: no class logits among its outputs, or before them.
    """
    floats: dict[str, Shape] = {}
    for spec, tensor in zip(model.outputs(), model.graph.outputs, strict=True):
        while tensor.inputs and tensor.inputs[0].op in _BEFORE_CLASSES and not is_float(spec.dtype):
            tensor = tensor.inputs[0].inputs[0]
        if is_float(spec.dtype):
            floats[spec.name] = spec.shape
        elif tensor.inputs and tensor.inputs[0].op == "ArgMax":
            source = tensor.inputs[0].inputs[0]
            floats[str(source.name)] = shapes.get(source.name, ())
    kinds = output_kinds(floats, image)
    names = {kind: [name for name, other in kinds.items() if other == kind] for kind in set(kinds.values())}
    if "queries" in names:
        return Subjects("queries", names["queries"][-1:], names["boxes"][:1])
    integers = any(not is_float(spec.dtype) for spec in model.outputs())
    if integers and any(len(shape) > 1 and shape[-1] in (4, 5) for shape in floats.values()):
        return _before_selection(model)
    if "logits" in names:
        return Subjects("logits", names["logits"][:1])
    if "pixels" in names:
        return Subjects("pixels", names["pixels"][:1])
    raise _nothing({name: list(shape) for name, shape in floats.items()})


def _before_selection(model: Model) -> Subjects:
    """The logits and boxes of a detector, before it selects."""
    try:
        edge = trainable_prefix(model)
    except NothingMatched:
        edge = []
    tensors = model.graph.tensors()
    chains = []
    for name in edge:
        chain, tensor = [name], tensors[name]
        while tensor.inputs and tensor.inputs[0].op in _AFTER_LOGITS and tensor.inputs[0].inputs[0].inputs:
            tensor = tensor.inputs[0].inputs[0]
            chain.append(str(tensor.name))
        chains.append(chain)
    scores = [chain for chain in chains if any(_makes(model, name, "Sigmoid", "Softmax") for name in chain)]
    others = [chain for chain in chains if chain not in scores]
    if not scores:
        raise _nothing({name: list(tensors[name].shape or ()) for name in edge})
    return Subjects("queries", scores[0], [name for chain in others for name in chain[:1]], finished=True)


def _makes(model: Model, name: str, *ops: str) -> bool:
    made = model.graph.tensors()[name].inputs
    return bool(made) and made[0].op in ops


def _nothing(found: Mapping[str, Any]) -> UnsupportedModelError:
    return UnsupportedModelError(
        "the model gives no class logits that a map could explain",
        expected="logits [B, C], queries [B, Q, C] with boxes [B, Q, 4], or pixels [B, C, H, W]",
        found=", ".join(f"{name} {shape}" for name, shape in found.items()) or "no float output",
        hint="--method rollout needs attention only",
    )


def probabilities(logits: Tensor) -> Tensor:
    """Softmax over the last axis; what is a distribution already stays."""
    x = logits.detach().double()
    return x if normalised(x.numpy()) else x.softmax(dim=-1)


def _query_scores(logits: Tensor) -> Tensor:
    """The probability of each class of each query, [Q, C]; a softmax's last class, "nothing", is left out."""
    x = logits.detach().double()
    return x.sigmoid() if per_class(x.numpy()) else x.softmax(dim=-1)[:, :-1]


def _of_query(p: Tensor, boxes: NDArray[np.float64] | None, query: int) -> Seen:
    label = int(p[query].argmax())
    box = None if boxes is None else tuple(float(edge) for edge in boxes[query])
    return Seen(label, float(p[query, label]), query, box)
