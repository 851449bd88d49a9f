"""Train a pruned float model towards the dense one: distilled pruning, M_DF teaches M_SF.

    L = alpha L_hard + beta L_soft + gamma sum_i L_feat_i

Weights, biases, norms and positional embeddings learn; zeros of weights that follow a pattern stay, step by step. The
teacher is the model before this pipeline's first pruning pass, or the file that `teacher` names, which makes the
pass work alone on a model that was pruned elsewhere.

Source: GPUSQ-ViT section 3.2; formulas in `gpusq_onnx.learn.objectives`. Limits: float models (a quantised one: `qat`);
operators of `gpusq_onnx.torchgraph`.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

from pydantic import Field

from gpusq_onnx.errors import NothingMatched, UnsupportedModelError, UsageError
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.structure import Structure
from gpusq_onnx.learn import planning
from gpusq_onnx.learn.environment import require_training
from gpusq_onnx.learn.settings import LabelFree
from gpusq_onnx.pipeline.base import Context, Fact, Pass, PlanContext, PlanRow


class DistillOptions(LabelFree):
    """Options of `distill`; a default that is not the paper's did best without labels (docs/benchmarks.md)."""

    epochs: int = Field(default=40, ge=1, description="passes over the training images")
    batch: int = Field(default=16, ge=1, description="images in an optimiser step, over all processes")
    lr: float = Field(default=5e-4, gt=0, description="peak learning rate of weights")
    decay: float = Field(default=0.0, ge=0, description="AdamW's weight decay, of weights alone")
    gamma: float = Field(default=40.0, ge=0, description="weight of the feature loss; 0: off (paper: 5)")
    bound: float = Field(
        default=8.0, ge=0, description="in a map's root mean squares: what is above counts as that; 0: off"
    )
    blockwise: float = Field(
        default=0.8, ge=0, le=1, description="share of the steps, the first, with blocks trained apart"
    )
    tokens: float = Field(
        default=0.5, gt=0, le=1, description="share of the patches' tokens that go through the blocks"
    )
    crop: float = Field(default=0.25, gt=0, le=1, description="least share of an image in a random crop; 1: no crops")


class Distill(Pass[DistillOptions]):
    """See the module's text."""

    name = "distill"
    kind = "finetune"
    float_only = True
    models = MappingProxyType({"teacher": "prune"})
    summary = "a pruned model trained towards the dense one; its zeros stay"
    source = "GPUSQ-ViT section 3.2"
    Options = DistillOptions

    @property
    def needs_data(self) -> bool:
        return True

    def work(self, images: int, data: bool) -> float | None:
        return planning.work(self.options, images)

    def requires(self, model: Model, structure: Structure) -> None:
        planning.require_trained_forms(model)
        quantised = [site for site in structure.sites if site.quantised]
        if quantised:
            raise UnsupportedModelError(
                f"{len(quantised)} weights are quantised; distill trains float models",
                where=quantised[0].path or quantised[0].name,
                hint="qat trains a quantised model with its scales; distill goes before qdq-int8",
            )

    def ready(self) -> None:
        require_training()
        planning.require_file(self.options.teacher, "distill.teacher")

    def plan(self, model: Model, structure: Structure, given: PlanContext) -> list[PlanRow]:
        planning.require_file(self.options.teacher, "distill.teacher")
        if self.options.teacher is None and "prune" in given.idle:
            raise NothingMatched(
                "distill trains what was pruned, and nothing was",
                found="the pruning before it had nothing to do",
                hint="a model that was pruned elsewhere learns from a file: distill{teacher=dense.onnx}",
            )
        if self.options.teacher is None and "prune" not in given.before:
            raise UsageError(
                "distill has no teacher: nothing was pruned earlier in this pipeline",
                where="distill",
                hint="--passes prune24,distill, or name the dense model: distill{teacher=dense.onnx}",
            )
        rows = planning.rows(model, structure, self.options, given)
        if self.options.teacher is None:
            planning.require_pruned(rows, self.name)
        return rows

    def apply(self, model: Model, structure: Structure, plan: Sequence[PlanRow], context: Context) -> None:
        from gpusq_onnx.learn.loop import train
        from gpusq_onnx.learn.masks import patterns
        from gpusq_onnx.learn.setup import prepare
        from gpusq_onnx.torchgraph.write_back import write_back

        teacher = planning.model_from(self.options.teacher, context.before, "prune")
        assert teacher is not None and context.source is not None, "plan saw to it"
        setup = prepare(model, structure, teacher, self.options, planning.sizes(model, context.source))
        history = train(
            setup,
            context.source,
            self.options,
            kept=patterns(site for site, _ in planning.sparse_sites(structure, plan)),
            seed=context.seed,
            progress=context.progress,
            folder=context.folder,
            label="distilling",
        )
        changed = write_back(setup.student, model)
        context.findings |= planning.learned(history, len(changed)).findings()
        context.warnings.extend(history.notes)

    def ensures(self, plan: Sequence[PlanRow]) -> list[Fact]:
        return planning.sparse_facts(plan)
