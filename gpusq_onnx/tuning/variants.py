"""Models in which one group alone is pruned or quantised, made in memory by the passes that `apply` runs.

The passes are planned once for the whole model; of the plan's rows, those of one group are carried out on a copy.
"""

from __future__ import annotations

from gpusq_onnx.data.source import Source
from gpusq_onnx.graph import label
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.structure import analyse
from gpusq_onnx.pipeline import table
from gpusq_onnx.pipeline.base import Context, PlanRow
from gpusq_onnx.pipeline.details import LearnedPair, OperandPair, TensorPair
from gpusq_onnx.pipeline.parallel import one_blas_thread
from gpusq_onnx.report.tuning import Group
from gpusq_onnx.tuning.groups import PRUNE, Groups, passes_of
from gpusq_onnx.tuning.treatments import Treatment


class Variants:
    """Makes variants of a model; keeps the pruned one of the group that was asked for last.

    Args:
        source: images to prune and calibrate with.
    """

    def __init__(self, model: Model, groups: Groups, source: Source, seed: int) -> None:
        self._model, self._groups, self._source, self._seed = model, groups, source, seed
        self._passes = table.rows()
        self._pruned: tuple[str, Model] | None = None

    def of(self, group: Group, treatment: Treatment) -> Model:
        """The model with this group alone in this form."""
        model = self._model
        for name in passes_of(treatment) if group.attention is None else passes_of(treatment)[-1:]:
            if name == PRUNE and self._pruned is not None and self._pruned[0] == group.name:
                model = self._pruned[1]
                continue
            model = self._applied(model, name, group)
            if name == PRUNE:
                self._pruned = group.name, model
        return model

    def _applied(self, model: Model, name: str, group: Group) -> Model:
        made = model.clone()
        step = table.one(name, self._passes)
        rows = [row for row in self._groups.rows[name] if not row.skipped and _concerns(row, group)]
        with one_blas_thread():
            step.apply(made, analyse(made), rows, Context(self._source, self._seed))
        label.settle(made)
        return made


def _concerns(row: PlanRow, group: Group) -> bool:
    """Whether a plan's row is about this group."""
    if isinstance(row.detail, (OperandPair, LearnedPair)):
        return row.detail.attention == group.attention
    sites = row.detail.sites if isinstance(row.detail, TensorPair) else (row.tensor,)
    return any(site in group.sites for site in sites)
