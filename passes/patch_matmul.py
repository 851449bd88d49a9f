"""Make the patch embedding a matrix product over whole patches, so that it can be 2:4 and quantised as the paper does.

    Conv(x, W[O, C, P, P]), stride P -> Reshape, Transpose, Reshape, MatMul(., W[C*P*P, O]), Add, Transpose

The result computes the same, up to the order of its sums. `prune24{patch=true}` and `qdq-int8{patch=true}` then treat
it like the other Linears; without these options it stays float. How, and what cannot be rewritten:
`graph.rewrites.patches`.

Source: GPUSQ-ViT section 3.2 ("implicit GEMM"). Limits: images of a fixed height and width that whole patches fill.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.rewrites.patches import DOES, declared, is_tiling, tiles_of, to_product
from gpusq_onnx.graph.rewrites.rule import Known, Unfit
from gpusq_onnx.graph.sites import Site
from gpusq_onnx.graph.structure import Structure
from gpusq_onnx.pipeline.base import SKIP, Context, Pass, PassOptions, PlanContext, PlanRow, require_any


class PatchMatMulOptions(PassOptions):
    """Options of `patch-matmul`."""

    inner: bool = Field(
        default=False, description="Convs after the first layer, too: their channels can be 2:4 as they are"
    )


class PatchMatMul(Pass[PatchMatMulOptions]):
    """See the module's text."""

    name = "patch-matmul"
    summary = "the patch embedding becomes a MatMul over C*P*P, which can be 2:4 and INT8"
    source = "GPUSQ-ViT section 3.2"
    structural = True
    exact = True
    Options = PatchMatMulOptions

    def plan(self, model: Model, structure: Structure, given: PlanContext) -> list[PlanRow]:
        known = declared(model, structure)
        rows = [self._row(site, known) for site in structure.sites if is_tiling(site)]
        require_any(
            rows,
            "no patch embedding can become a product",
            else_found="no Conv whose stride is its kernel",
            hint="pruning and quantising take it as it is where its channels allow",
        )
        return rows

    def apply(self, model: Model, structure: Structure, plan: Sequence[PlanRow], context: Context) -> None:
        known, chosen = declared(model, structure), {row.tensor for row in plan if not row.skipped}
        for site in [site for site in structure.sites if site.name in chosen]:
            to_product(model, site, known)

    def _row(self, site: Site, known: Known) -> PlanRow:
        reason = ""
        if site.role != "patch_embed" and not self.options.inner:
            reason = "no first layer (inner=true takes it, too)"
        elif site.quantised or site.conflicts:
            reason = site.conflicts[0] if site.conflicts else "it is quantised already"
        try:
            done = [tiles_of(node, known) for node in site.readers]
        except Unfit as why:
            reason, done = reason or str(why), []
        decision = SKIP if reason else "rewrite"
        reason = reason or f"{DOES}: {done[0].rows * done[0].columns} patches of {done[0].k}"
        return PlanRow(site.name, site.path, site.role, site.op, (site.out, site.k), decision, reason)
