"""What `distill` and `qat` plan and report alike: a row for each weight and each feature map, and what was learned.

Plans are made without torch, too. Where it is installed, and the model has one size, they say which weights training
reaches in the graph; elsewhere all float weights that are no graph outputs count as trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gpusq_onnx.data.sizes import sizes_of
from gpusq_onnx.data.source import Source
from gpusq_onnx.errors import EnvironmentLacking, NothingMatched, UnsupportedModelError, UsageError
from gpusq_onnx.graph import io
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.pin import Sizes, is_open
from gpusq_onnx.graph.qdq.weight_only import NBITS, find_nbits
from gpusq_onnx.graph.rewrites.canonical import spelled_out
from gpusq_onnx.graph.sites import Site
from gpusq_onnx.graph.structure import Structure
from gpusq_onnx.graph.wording import node_label
from gpusq_onnx.learn.environment import on_gpu, require_training
from gpusq_onnx.learn.history import History
from gpusq_onnx.learn.settings import JUDGED, LossOptions, TrainingOptions
from gpusq_onnx.pipeline.base import SKIP, Fact, PlanContext, PlanRow
from gpusq_onnx.pipeline.details import Following, rows_with
from gpusq_onnx.pipeline.facts import SparseWeight, pattern_of
from gpusq_onnx.pipeline.learned import AgreementChange, BeforeAfter, Learned, MaskChecks, Training
from gpusq_onnx.pipeline.schedule import LOOKING
from gpusq_onnx.sparsity.patterns import Pattern, parse_pattern

if TYPE_CHECKING:
    from gpusq_onnx.torchgraph.prefix import Reach

TRAIN, COMPARE = "train", "compare"
_ROWS = 200  # of a curve in the report


def rows(model: Model, structure: Structure, settings: TrainingOptions, given: PlanContext) -> list[PlanRow]:
    """One row for each weight, then one for each feature map.

    Raises:
        NothingMatched: there is no float weight.
        UnsupportedModelError: no weight can be trained in this graph, or it has no batch axis.
    """
    _require_batch(model, structure)
    returned = {site.name: site.conflicts[-1] for site in structure.sites if site.weight.name in structure.flow.outputs}
    reached = _reached(model, structure)
    why = returned if reached is None else reached.untrained | returned
    found = [_weight_row(site, given.facts, why) for site in structure.sites]
    if all(row.skipped for row in found):
        if why:
            raise UnsupportedModelError("no weight can be trained", found="; ".join(dict.fromkeys(why.values())))
        raise NothingMatched("no weight can be trained", found="a graph without float MatMul, Gemm or Conv weights")
    return found + (_map_rows(structure, settings, reached) if settings.gamma else [])


def require_pruned(plan: Sequence[PlanRow], name: str) -> None:
    """Raise UnsupportedModelError where all weights that follow a pattern are among those that are not trained."""
    sparse = [row for row, _ in rows_with(plan, Following)]
    if sparse and all(row.skipped for row in sparse):
        raise UnsupportedModelError(
            f"{name} can train none of the weights that were pruned",
            where=sparse[0].tensor,
            found=f"{len(sparse)} pruned weights stay as they are; this one: {sparse[0].reason}",
            hint=f"leave {name} out: what lies before those weights is as the teacher has it",
        )


def sparse_facts(plan: Sequence[PlanRow]) -> list[Fact]:
    """That the weights that came sparse still are."""
    return [SparseWeight(row.tensor, detail.pattern) for row, detail in rows_with(plan, Following)]


def sparse_sites(structure: Structure, plan: Sequence[PlanRow]) -> list[tuple[Site, Pattern]]:
    """The sites whose zeros must stay, and what they follow."""
    sparse = {row.tensor: parse_pattern(detail.pattern) for row, detail in rows_with(plan, Following)}
    return [(site, sparse[site.name]) for site in structure.sites if site.name in sparse]


def require_file(path: Path | None, option: str) -> None:
    """Raise UsageError where an option names a model file that is not there."""
    if path is not None and not path.is_file():
        raise UsageError(f"there is no model {path}", where=option, hint="check the path")


def work(settings: TrainingOptions, images: int, distances: int = 0) -> float | None:
    """See `Pass.work`; `distances` is the number of images that D_i is measured on. None: it runs on a GPU."""
    if settings.device != "cpu" and on_gpu():
        return None
    rows = max(1, min(settings.batch, images))
    steps = settings.steps or settings.epochs * (images // rows)
    return settings.work * steps * rows + LOOKING * (2 * min(JUDGED, images) + min(distances, images))


def model_from(path: Path | None, before: Mapping[str, Model], kind: str) -> Model | None:
    """The model in `path`, or the one before the first pass of `kind`, or None."""
    return spelled_out(io.load(path)) if path is not None else before.get(kind)


def sizes(model: Model, source: Source) -> Sizes:
    """The shapes that the data gives to a model which leaves height and width open; else nothing."""
    return sizes_of(source) if is_open(model.inputs()) else {}


def learned(history: History, changed: int) -> Learned:
    """What the report shows; nothing that depends on time."""
    step = max(1, -(-len(history.curve) // _ROWS))
    before, after = history.before, history.after
    return Learned(
        curve=history.curve[::step] + (history.curve[-1:] if (len(history.curve) - 1) % step else []),
        masks=MaskChecks(history.masks, history.checks),
        agreement=AgreementChange(before.agreement, after.agreement, images=after.images),
        soft=BeforeAfter(before.soft, after.soft),
        training=Training(history.steps, history.batch, history.processes, history.bf16, history.remembered),
        learned=changed,
    )


def require_trained_forms(model: Model) -> None:
    """Raise UnsupportedModelError for weights in a form that is not trained."""
    if (found := next(find_nbits(model), None)) is not None:
        raise UnsupportedModelError(
            f"{NBITS} is not trained: its codes are packed for a kernel of onnxruntime",
            where=node_label(found.node),
            expected="weights before QuantizeLinear and DequantizeLinear, or codes before DequantizeLinear",
            hint="int4-weights without runtime=onnxruntime writes codes that TensorRT and onnxruntime take",
        )


def _require_batch(model: Model, structure: Structure) -> None:
    """Raise UnsupportedModelError for a fixed first size of the inputs, above 1, that no output and no map has."""
    inputs, outputs = model.inputs(), [spec.name for spec in model.outputs()]
    sizes = {spec.shape[0] if spec.shape else None for spec in inputs}
    size = sizes.pop() if len(sizes) == 1 else None
    made = {name: structure.shapes.get(name) for name in (*outputs, *structure.feature_maps)}
    known = [shape for shape in made.values() if shape is not None and all(isinstance(n, int) for n in shape)]
    if not isinstance(size, int) or size == 1 or not any(known) or len(known) < len(made):
        return
    if any(size in shape or (len(shape) > 1 and int(shape[0] or 0) % size == 0) for shape in known):
        return
    own = inputs[0]
    raise UnsupportedModelError(
        "the model has no batch axis, and training needs one",
        where=f"input {own.name!r}",
        expected="axis 0 of every input is the batch, which outputs have, too",
        found=f"{list(own.shape)}; " + ", ".join(f"{name} {list(shape or ())}" for name, shape in made.items()),
        hint=f"export it for a batch of one image: [1, {', '.join(map(str, own.shape))}]",
    )


def _reached(model: Model, structure: Structure) -> Reach | None:
    """What training reaches; None where that is not known."""
    if is_open(model.inputs()):
        return None
    try:
        require_training()
    except EnvironmentLacking:
        return None
    from gpusq_onnx.torchgraph.prefix import reach

    try:
        return reach(model, [site for site in structure.sites if site.is_float])
    except NothingMatched as error:
        said = error.details
        raise UnsupportedModelError(
            f"the model cannot be trained: {error.what}", where=said["where"], found=said["found"], hint=said["next"]
        ) from None


def _weight_row(site: Site, facts: Sequence[Fact], why: Mapping[str, str]) -> PlanRow:
    head = site.name, site.path, site.role, site.op, (site.out, site.k)
    if not site.is_float:
        return PlanRow(*head, SKIP, f"stored as {site.dtype} codes: only their scale can be learned")
    pattern = pattern_of(site, facts)
    if site.name in why:
        return PlanRow(*head, SKIP, why[site.name], {} if pattern is None else Following(pattern.name))
    if pattern is None:
        return PlanRow(*head, TRAIN, "dense")
    kept = f"{pattern.name} stays" if site.read().any() else "all zero, and stays so"
    reason = f"{kept}: zeros are written again after every step"
    return PlanRow(*head, TRAIN, reason, Following(pattern.name))


def _map_rows(structure: Structure, settings: LossOptions, reached: Reach | None) -> list[PlanRow]:
    ops = {str(tensor.name): str(node.op) for node in structure.flow.nodes for tensor in node.outputs}
    names = map_names(structure, settings)
    if settings.maps:
        missing = [name for name in names if name not in ops]
        if missing:
            raise UsageError(
                f"there is no tensor {missing[0]!r} to compare",
                where="maps",
                expected=f"names of activations, such as {', '.join(structure.feature_maps)}",
            )
    what = "named by maps" if settings.maps else f"the end of one of {len(names)} {settings.features}"
    compared = names if reached is None or settings.maps else [name for name in names if name in reached.computed]
    return [
        PlanRow(
            name,
            "",
            "feature map",
            ops[name],
            structure.shapes.get(name, ()),
            COMPARE if name in compared else SKIP,
            what if name in compared else "it comes after what can be trained",
        )
        for name in names
    ]


def map_names(structure: Structure, settings: LossOptions) -> list[str]:
    """The critical feature maps, as the settings choose them."""
    if settings.maps:
        return list(settings.maps)
    if settings.features == "blocks":
        return [block.output for block in structure.blocks if block.output]
    return structure.feature_maps
