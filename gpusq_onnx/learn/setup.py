"""A student, its teacher, and which tensors of the two are compared.

    outputs    the student's float outputs with the teacher's of the same name, or else at the same place; where a graph
               ends in what cannot be trained through, the tensors up to which it can
    selections where a TopK selects (a detector's queries), the student trains on the teacher's selection: query
               i is one query in both then; and it learns the scores that they were picked by
    maps       the ends of the stages (or of all blocks) in order, whatever their names; `maps` names tensors instead,
               which must have one name in both

Source: docs/method.md, "Three models" (one graph at three moments) and "Losses". A teacher may be another graph of the
same architecture: exported differently, or quantised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from gpusq_onnx.errors import UnsupportedModelError, UsageError
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.pin import Sizes, is_open, pinned
from gpusq_onnx.graph.shapes import Shapes
from gpusq_onnx.graph.structure import Structure, analyse
from gpusq_onnx.graph.tokens import token_layout
from gpusq_onnx.learn.objectives import Pair
from gpusq_onnx.learn.planning import map_names
from gpusq_onnx.learn.settings import LossOptions, ScheduleOptions, TrainingOptions
from gpusq_onnx.learn.views import NetworkView, Tokens, thin
from gpusq_onnx.tasks.kinds import Kind, image_shape, output_kinds
from gpusq_onnx.torchgraph.convert import ancestors, convert
from gpusq_onnx.torchgraph.network import Network
from gpusq_onnx.torchgraph.prefix import selections, trainable_prefix


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What one model learns from another.

    Attributes:
        student, teacher: the networks; the teacher has no trainable parameters.
        outputs, kinds: the outputs that are compared, and what they are, by the student's names.
        maps: the critical feature maps, first stage first.
        selections: indices that the teacher's TopKs found, handed to the student's views.
        views: the student's views, by (apart, thin): always the whole one, others where a phase needs them.
        thin_teacher: the teacher on some tokens, where a phase needs it.
        tokens: which tokens go through thin views.
        notes: what could not be done, for the user.
    """

    student: Network
    teacher: Network
    outputs: tuple[Pair, ...]
    kinds: dict[str, Kind]
    maps: tuple[Pair, ...]
    selections: tuple[Pair, ...]
    views: dict[tuple[bool, bool], NetworkView]
    thin_teacher: NetworkView | None = None
    tokens: Tokens | None = None
    notes: tuple[str, ...] = ()

    def on_all_tokens(self) -> Setup:
        """The same without thin views, which are made for one size of the inputs."""
        if self.tokens is None:
            return self
        views = {key: view for key, view in self.views.items() if not key[1]}
        notes = (*self.notes, "all tokens are trained on: the inputs differ in size")
        return replace(self, views=views, thin_teacher=None, tokens=None, notes=notes)

    def handed(self, taught: Mapping[str, Tensor], apart: bool) -> list[Tensor]:
        """What a view of the student takes besides the inputs, of what the teacher found."""
        maps = [taught[pair.teacher].float() for pair in self.maps[:-1]] if apart else []
        return [*maps, *(taught[pair.teacher].long() for pair in self.selections)]


def prepare(
    model: Model, structure: Structure, teacher: Model, settings: TrainingOptions, sizes: Sizes | None = None
) -> Setup:
    """Convert both models, with taps where they are compared, in the views that the settings' phases need.

    Args:
        sizes: shapes of the images that will be fed, for models that leave height and width open; the networks take
            others, too, but for their thin views.

    Raises:
        UsageError: `maps` names a tensor that one of them does not have.
        UnsupportedModelError: an operator that cannot be trained through, or two models that do not match.
    """
    open_model, open_teacher, sizes = model, teacher, sizes or {}
    if is_open(model.inputs()) and sizes:
        model = pinned(model, sizes)
        structure = analyse(model)
    teacher = pinned(teacher, sizes)
    other = analyse(teacher)
    names, others = trainable_prefix(model), trainable_prefix(teacher)
    every = match_maps(structure, other, settings)
    maps = _before(every, model, names) if not settings.maps else every
    outputs = _match_outputs(names, others)
    _require_alike((*outputs, *maps), structure.shapes, other.shapes)
    scores, selected = _match_selections(selections(model, names), selections(teacher, others))
    outputs += tuple(pair for pair in scores if pair not in outputs)
    taps, results = [pair.student for pair in maps], [pair.student for pair in outputs]
    chosen = [pair.student for pair in selected]
    watched, answers = [pair.teacher for pair in (*maps, *selected)], [pair.teacher for pair in outputs]
    student = _converted(open_model, sizes, outputs=results, taps=taps)
    guide = _converted(open_teacher, sizes, outputs=answers, taps=watched, train=())
    if set(student.inputs) != set(guide.inputs):
        raise UnsupportedModelError(
            "student and teacher do not take the same inputs",
            expected=", ".join(student.inputs),
            found=", ".join(guide.inputs),
            hint="give the model from which this one was made as the teacher",
        )
    image = image_shape(spec.shape for spec in model.inputs())
    whole = partial(_view, open_model, sizes, student, results, taps)
    views = {(False, False): whole(chosen)}
    wanted = {(apart and len(taps) > 1, thinned) for _, apart, thinned in phases(settings)} - set(views)
    thins = any(t for _, t in wanted) and not chosen and bool(maps or not every)  # a pick names one of all tokens
    some, tokens = _thin_teacher(structure, teacher, other, outputs, maps, settings, thins)
    for apart, thinned in sorted(wanted):
        given = taps[:-1] if apart else []
        view = None
        if thinned and tokens is not None:
            view = thin(model, tokens, structure.shapes, results, taps, given, student)
        if view is not None:
            views[apart, True] = view
        elif apart and (True, False) not in views:
            views[True, False] = whole([*given, *chosen])
    notes = [f"{len(every) - len(maps)} feature maps lie after what can be trained: not compared"] * (maps != every)
    if any(thinned and (apart, True) not in views for apart, thinned in wanted):
        notes.append("all tokens are trained on: this graph's blocks cannot leave some out")
    kinds = output_kinds({name: structure.shapes.get(name, ()) for name in names}, image)
    kinds |= {pair.student: "raw" for pair in scores if pair.student not in kinds}
    return Setup(
        student=student,
        teacher=guide,
        outputs=outputs,
        kinds=kinds,
        maps=maps,
        selections=selected,
        views=views,
        thin_teacher=some,
        tokens=tokens,
        notes=tuple(notes),
    )


def _converted(model: Model, sizes: Sizes, **how: Any) -> Network:
    """`convert(model, **how)`, at these sizes where the model leaves some open: then it takes inputs of others, too."""
    network = convert(pinned(model, sizes), **how)
    if sizes and is_open(model.inputs()):
        network.resize_with(lambda others: convert(pinned(model, others), **how), sizes)
    return network


def _view(
    model: Model, sizes: Sizes, like: Network, outputs: Sequence[str], taps: Sequence[str], given: Sequence[str]
) -> NetworkView:
    """The network, or the same on all tokens with tensors handed in."""
    if not given:
        return NetworkView(like)
    parts = _converted(model, sizes, outputs=outputs, taps=taps, given=given)
    parts.share(like)
    return NetworkView(parts)


def _thin_teacher(
    structure: Structure,
    teacher: Model,
    other: Structure,
    outputs: Sequence[Pair],
    maps: Sequence[Pair],
    settings: TrainingOptions,
    wanted: bool,
) -> tuple[NetworkView | None, Tokens | None]:
    """The teacher's thin view, and the student's tokens before the first block, where both are possible."""
    own = token_layout(structure, [pair.student for pair in maps]) if wanted else None
    his = token_layout(other, [pair.teacher for pair in maps]) if wanted else None
    if own is None or his is None or (own.count, own.patches) != (his.count, his.patches):
        return None, None
    tokens = Tokens(his, settings.tokens)
    view = thin(teacher, tokens, other.shapes, [pair.teacher for pair in outputs], [pair.teacher for pair in maps])
    return view, Tokens(own, settings.tokens) if view is not None else None


def phases(settings: ScheduleOptions) -> list[tuple[float, bool, bool]]:
    """The phases of a run: (share of the steps at which it ends, whether apart, whether thin)."""
    thinned = settings.thinned if settings.tokens < 1 else 0.0
    ends = sorted({end for end in (settings.blockwise, thinned, 1.0) if end > 0})
    return [(end, end <= settings.blockwise, end <= thinned) for end in ends]


def _before(maps: tuple[Pair, ...], model: Model, outputs: Sequence[str]) -> tuple[Pair, ...]:
    """The maps that the outputs are made of: others come after a Loop, or another node that ends what is trained."""
    made = {tensor.name for node in ancestors(model, outputs) for tensor in node.outputs}
    return tuple(pair for pair in maps if pair.student in made)


def match_maps(structure: Structure, teacher: Structure, settings: LossOptions) -> tuple[Pair, ...]:
    """The student's maps with the teacher's."""
    if not settings.gamma:
        return ()
    own, others = map_names(structure, settings), map_names(teacher, settings)
    if settings.maps:
        known = [{str(t.name) for n in side.flow.nodes for t in n.outputs} for side in (structure, teacher)]
        missing = [name for name in own for names in known if name not in names]
        if missing:
            raise UsageError(
                f"there is no tensor {missing[0]!r} to compare",
                where="maps",
                expected=f"names of activations in student and teacher, such as {', '.join(structure.feature_maps)}",
            )
    if len(own) != len(others):
        raise UnsupportedModelError(
            "student and teacher do not have the same blocks",
            expected=f"{len(own)} feature maps, as the student",
            found=f"{len(others)} in the teacher",
            hint="give the model from which this one was made as the teacher, or gamma=0",
        )
    return tuple(Pair(a, b) for a, b in zip(own, others, strict=True))


def _match_selections(
    own: Sequence[tuple[str, str]], others: Sequence[tuple[str, str]]
) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """Pairs of scores, which are outputs to compare, and of indices; none where the graphs select differently often."""
    if len(own) != len(others):
        return (), ()
    pairs = [(Pair(a, b), Pair(i, j)) for (a, i), (b, j) in zip(own, others, strict=True)]
    return tuple(scores for scores, _ in pairs), tuple(indices for _, indices in pairs)


def _match_outputs(own: Sequence[str], others: Sequence[str]) -> tuple[Pair, ...]:
    if set(own) <= set(others):
        return tuple(Pair(name, name) for name in own)
    if len(own) != len(others):
        raise UnsupportedModelError(
            "student and teacher do not have the same outputs", expected=", ".join(own), found=", ".join(others)
        )
    return tuple(Pair(a, b) for a, b in zip(own, others, strict=True))


def _require_alike(pairs: Sequence[Pair], own: Shapes, others: Shapes) -> None:
    """Raise UnsupportedModelError where what is compared has other sizes in the teacher, apart from the batch."""
    for pair in pairs:
        a, b = own.get(pair.student), others.get(pair.teacher)
        if a is None or b is None:
            continue
        sizes = zip(a[1:], b[1:], strict=False)
        if len(a) != len(b) or any(isinstance(m, int) and isinstance(n, int) and m != n for m, n in sizes):
            raise UnsupportedModelError(
                "student and teacher cannot be compared: sizes differ",
                where=f"{pair.student!r}, and {pair.teacher!r} of the teacher",
                expected=f"{list(a)}, as the student, whatever the batch",
                found=str(list(b)),
                hint="give the model from which this one was made as the teacher",
            )
