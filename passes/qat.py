"""Train a quantised model with its scales: sparse-distillation-aware QAT.

    1. weight scales are chosen again: least squared error over the weights that are not zero
    2. D_i, how far pruning moved each critical feature map, gives its weight w_i
    3. L = alpha L_hard + beta L_soft + gamma sum_i w_i L_feat_i; weights learn, and the scales of both

The teacher is the dense model where it is known: the one before pruning, or the file `dense`. Where it is not, or
with `against=sparse` (the paper's choice), it is the sparse float model: the one before this pipeline's first
quantising pass, the file that `teacher` names, or the model itself with its quantisers off. D_i needs both models;
without the dense one, every w_i is 1.

A model in 8 bits is close to its teacher already, so weights move little by default (`lr`), biases, norms and positions
more (`vector_lr`): larger steps of all weights led away from it. One with weights of 4 bits is not, and takes the
larger steps of FOUR_BITS where the options do not say otherwise.

Source: GPUSQ-ViT section 3.3; LSQ (arXiv 1902.08153); formulas in `gpusq_onnx.learn`. Limits: weights stored as integer
codes stay as they are, their scales learn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from pydantic import Field

from gpusq_onnx.errors import NothingMatched, UsageError
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.qdq.codes import store_on_grid, weight_format
from gpusq_onnx.graph.qdq.weight_only import NBITS
from gpusq_onnx.graph.structure import Structure
from gpusq_onnx.learn import planning
from gpusq_onnx.learn.environment import require_training
from gpusq_onnx.learn.factors import weight_factors
from gpusq_onnx.learn.rescaling import recalibrate, scale_values
from gpusq_onnx.learn.settings import Factors, LabelFree
from gpusq_onnx.pipeline.base import Context, Fact, Pass, PlanContext, PlanRow
from gpusq_onnx.pipeline.facts import ExplicitQuantisation
from gpusq_onnx.quant.formats import LOW_BITS

FOUR_BITS: Mapping[str, float] = MappingProxyType({"lr": 1e-4, "vector_lr": 1.0, "scale_lr": 1.0})


class QatOptions(LabelFree):
    """Options of `qat`; a default that is not the paper's did best without labels (docs/benchmarks.md)."""

    epochs: int = Field(default=3, ge=1, description="passes over the training images")
    batch: int = Field(default=20, ge=1, description="images in an optimiser step, over all processes")
    lr: float = Field(default=4e-6, gt=0, description="peak learning rate of weights (of 4 bits: 1e-4)")
    vector_lr: float = Field(
        default=25.0, ge=0, description="of biases, norms and positions, as a share of lr (4 bits: 1)"
    )
    scale_lr: float = Field(default=2.5, ge=0, description="the scales' learning rate, as a share of lr (4 bits: 1)")
    against: Literal["auto", "sparse", "dense"] = Field(
        default="auto",
        description="teacher: the dense model, or the sparse float one (paper); auto: dense where it is known",
    )
    dense: Path | None = Field(
        default=None, description="the dense model; none: the one before this pipeline's pruning"
    )
    factors: Factors = Field(default="inverse", description="how w_i follows from D_i")
    images: int = Field(default=1024, ge=1, description="images that D_i is measured on")
    recalibrate: bool = Field(default=True, description="choose weight scales again before they are learned")


class Qat(Pass[QatOptions]):
    """See the module's text."""

    name = "qat"
    kind = "finetune"
    models = MappingProxyType({"teacher": "quantise", "dense": "prune"})
    summary = "a quantised model and its scales trained towards the float model; its zeros stay"
    source = "GPUSQ-ViT section 3.3; arXiv 1902.08153"
    Options = QatOptions

    @property
    def needs_data(self) -> bool:
        return True

    def work(self, images: int, data: bool) -> float | None:
        return planning.work(self.options, images, 0 if self.options.factors == "none" else self.options.images)

    def ready(self) -> None:
        require_training()
        planning.require_file(self.options.teacher, "qat.teacher")
        planning.require_file(self.options.dense, "qat.dense")

    def follows(self, earlier: Pass[Any]) -> str | None:
        return f"does not train {NBITS}" if NBITS in earlier.writes().forms else super().follows(earlier)

    def requires(self, model: Model, structure: Structure) -> None:
        planning.require_trained_forms(model)

    def plan(self, model: Model, structure: Structure, given: PlanContext) -> list[PlanRow]:
        planning.require_file(self.options.teacher, "qat.teacher")
        planning.require_file(self.options.dense, "qat.dense")
        if "quantise" not in given.before and not any(node.op == "QuantizeLinear" for node in model.graph.nodes):
            raise NothingMatched(
                "qat learns the scales of a quantised model, and this one is not quantised",
                expected="QuantizeLinear and DequantizeLinear nodes",
                hint="--passes qdq-int8,qat; a float model is trained by distill",
            )
        dense = self.options.dense or self.options.teacher
        if self.options.against == "dense" and dense is None and not {"prune"} & (given.before | given.idle):
            raise UsageError(
                "against=dense needs the dense model, and nothing was pruned in this pipeline",
                where="qat.against",
                hint="qat{against=dense,dense=dense.onnx}",
            )
        return planning.rows(model, structure, self.options, given)

    def apply(self, model: Model, structure: Structure, plan: Sequence[PlanRow], context: Context) -> None:
        from gpusq_onnx.learn.loop import train
        from gpusq_onnx.learn.masks import rounded_patterns
        from gpusq_onnx.learn.setup import prepare
        from gpusq_onnx.torchgraph.write_back import write_back

        assert context.source is not None
        options = self._fitted(structure, context)
        dense = planning.model_from(options.dense, context.before, "prune")
        sparse = planning.model_from(options.teacher, context.before, "quantise")
        teacher = dense if options.against != "sparse" and dense is not None else sparse
        formats = ((site, weight_format(site)) for site in structure.sites if site.quantised == "qdq")
        carried = [(site, fmt) for site, fmt in formats if fmt is not None and fmt.carried]
        if options.recalibrate:
            context.findings["recalibrated"] = recalibrate(structure.sites)
        setup = prepare(model, structure, teacher or model, options, planning.sizes(model, context.source))
        if teacher is None:
            for quantiser in setup.teacher.quantisers:
                quantiser.enabled = False
        names = [pair.student for pair in setup.maps]
        d = self._distances(dense, sparse, context) if names else []
        w = weight_factors(d, options.factors, context.seed) if d else [1.0] * len(names)
        before = scale_values(model)
        history = train(
            setup,
            context.source,
            options,
            factors=w,
            kept=rounded_patterns(planning.sparse_sites(structure, plan), sparse),
            seed=context.seed,
            progress=context.progress,
            folder=context.folder,
            label="learning scales",
        )
        changed = write_back(setup.student, model)
        for site, fmt in carried:
            store_on_grid(site, fmt)
        after = scale_values(model)
        learned = replace(
            planning.learned(history, len(changed)),
            factors=dict(zip(names, w, strict=True)) or None,
            distances=dict(zip(names, d, strict=False)) or None,
            movement={name: (value, after[name]) for name, value in before.items()},
        )
        context.findings |= learned.findings()
        context.warnings.extend(history.notes)

    def ensures(self, plan: Sequence[PlanRow]) -> list[Fact]:
        return [*planning.sparse_facts(plan), ExplicitQuantisation()]

    def _fitted(self, structure: Structure, context: Context) -> QatOptions:
        """The options, with the rates that go with the model's bits where none are given."""
        formats = (weight_format(site) for site in structure.sites if site.quantised == "qdq")
        if not any(fmt is not None and fmt.bits <= LOW_BITS for fmt in formats):
            return self.options
        rates = {name: rate for name, rate in FOUR_BITS.items() if name not in self.options.model_fields_set}
        context.findings["rates"] = rates
        return self.options.model_copy(update=rates)

    def _distances(self, dense: Model | None, sparse: Model | None, context: Context) -> list[float]:
        """D_i, where both models are known and w_i depends on it."""
        from gpusq_onnx.learn.distance import distances

        assert context.source is not None
        if self.options.factors == "none":
            return []
        if dense is None or sparse is None:
            context.warnings.append("every w_i is 1: without the dense and the sparse float model there is no D_i")
            return []
        return distances(dense, sparse, context.source, self.options, self.options.images, context.progress)
