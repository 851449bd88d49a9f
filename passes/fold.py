"""Turn what is computed from constants into initializers, so that such weights are found like any other.

    Transpose(W), Mul(W, s), Einsum(W, V), MLP(constant table) -> one initializer, the nodes that compute it go

Exporters leave such parts where weights are shared, scaled or made from tables (SwinV2's position MLP). TensorRT folds
them when it builds; pruning and quantisation need them before. What is kept and why: `graph.rewrites.folding`.

Limits: shapes that depend on a dynamic dimension stay in the graph.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.rewrites.folding import MIB, Fold, fold_all
from gpusq_onnx.graph.sites import module_path
from gpusq_onnx.graph.structure import Structure
from gpusq_onnx.pipeline.base import SKIP, Context, Pass, PassOptions, PlanContext, PlanRow, require_any
from gpusq_onnx.runtime.ort import silenced


class FoldOptions(PassOptions):
    """Options of `fold`."""

    growth: float = Field(default=1.0, ge=0, description="MiB by which one folded tensor may make the file larger")


class FoldConstants(Pass[FoldOptions]):
    """See the module's text."""

    name = "fold"
    summary = "what is computed from constants becomes an initializer, so that it can be pruned and quantised"
    source = "onnx-graphsurgeon fold_constants"
    structural = True
    exact = True
    Options = FoldOptions

    def plan(self, model: Model, structure: Structure, given: PlanContext) -> list[PlanRow]:
        with silenced():
            rows = [_row(found) for found in fold_all(model.clone(), int(self.options.growth * MIB))]
        require_any(
            rows,
            "nothing can be folded",
            else_found="no node that constants alone decide",
            hint="leave the pass out, or let constants grow: fold{growth=64}, in MiB",
        )
        return rows

    def apply(self, model: Model, structure: Structure, plan: Sequence[PlanRow], context: Context) -> None:
        before = len(model.graph.nodes)
        with silenced():
            fold_all(model, int(self.options.growth * MIB), {row.tensor for row in plan if not row.skipped})
        context.findings["nodes_removed"] = before - len(model.graph.nodes)


def _row(found: Fold) -> PlanRow:
    decision = SKIP if found.refusal else "fold"
    reason = found.refusal or f"computed from constants by {found.nodes} node{'s' if found.nodes > 1 else ''}"
    return PlanRow(found.name, module_path(found.node), "constant", found.node.op, found.shape, decision, reason)
