"""Give the graph the forms that the later passes treat: MatMul for Einsum, plain weights, no branches.

    Einsum(x, W), Einsum(q, k) -> MatMul        Attention (opset 23), few tokens -> MatMul, Softmax, MatMul
    If(constant) -> its branch                  MatMul(x, Reshape(W)), Mul(W, s) -> MatMul(x, one initializer)
    Gemm(x, W, b, alpha, beta) -> Gemm(x, alpha W, beta b)
    V' P', Softmax(K Q') over axis -2 -> P V, Softmax(Q K') over the last axis
    onnxruntime's own operators (SkipLayerNormalization, FusedMatMul, ...) -> those of ONNX that they fuse

It comes by itself: before the first pass that reorders, prunes or quantises, where it has something to do, and
before any first pass where onnxruntime has optimised the file (`--no-canonical` leaves it out). Each rewrite computes
the same up to rounding. How, and why not: `graph.rewrites.canonical`.

Limits: the rows of `graph.rewrites.canonical.RULES`.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.rewrites.canonical import RULES, NodeChange, canonicalise, has_candidates
from gpusq_onnx.graph.structure import Structure
from gpusq_onnx.pipeline.base import SKIP, Context, Pass, PassOptions, PlanContext, PlanRow, require_any
from gpusq_onnx.runtime.ort import silenced


class CanonicalOptions(PassOptions):
    """Options of `canonical`."""

    attention: bool = Field(
        default=True, description="take fused Attention of few tokens apart, so that INT8 reaches it"
    )


class Canonical(Pass[CanonicalOptions]):
    """See the module's text."""

    name = "canonical"
    summary = "Einsum, fused operators, constant branches and computed weights take the forms that passes treat"
    source = "ONNX operator definitions; TensorRT folds and rewrites the same at build time"
    structural = True
    exact = True
    Options = CanonicalOptions

    def _operators(self) -> tuple[str, ...]:
        return tuple(op for op in RULES if op != "Attention" or self.options.attention)

    def plan(self, model: Model, structure: Structure, given: PlanContext) -> list[PlanRow]:
        rows: list[PlanRow] = []
        if has_candidates(model, structure.flow, self._operators()):
            with silenced():
                rows = [_row(change) for change in canonicalise(model.clone(), self._operators())]
        require_any(
            rows,
            "the model has the forms already that later passes treat",
            else_found="no Einsum, fused operator, constant branch or computed weight",
            hint="leave the pass out: it comes by itself where it has something to do",
        )
        return rows

    def apply(self, model: Model, structure: Structure, plan: Sequence[PlanRow], context: Context) -> None:
        before = len(model.graph.nodes)
        with silenced():
            canonicalise(model, self._operators())
        context.findings["nodes"] = {"before": before, "after": len(model.graph.nodes)}


def _row(change: NodeChange) -> PlanRow:
    decision = SKIP if change.kept else "rewrite"
    return PlanRow(change.tensor, change.module, "node", change.op, change.shape, decision, change.reason)
