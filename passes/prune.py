"""Rewrite MatMul, Gemm and Conv weights to 2:4 or another pattern along the reduction axis.

Every constant weight is pruned unless `graph.exclusions` has a reason, or the group does not divide its reduction.

    magnitude   keep the largest |w| of each group: needs nothing; loses 5-14 points on base models, ruins tiny ones
    sparsegpt   group by group of layers on the activations of the part already pruned: choose and update by
                second-order error on calibration images, then move each bias by the mean error that is left.
                aim=dense: a weight starts from the one that on these activations comes nearest to the dense model's
                outputs (`sparsity.target`); aim=layer: from the dense weight
    auto        sparsegpt where calibration data is given, magnitude where not

`prune24`, `prune48pair` and `prune-nm` are this pass with another default pattern.

Source: GPUSQ-ViT section 3.2; SparseGPT (arXiv 2301.00774) algorithm 1; TensorRT: groups of four aligned along K, for a
Conv along C at each kernel position. Limits: Convs over other than two axes, with groups or implicit padding
are pruned by magnitude under either method.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from numpy.typing import NDArray
from pydantic import Field

from gpusq_onnx.calibration.pruning import prune_site
from gpusq_onnx.calibration.row_weights import answers, classifies
from gpusq_onnx.calibration.walk import Walk, observable
from gpusq_onnx.errors import UnsupportedModelError
from gpusq_onnx.graph.exclusions import SMALLEST
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.sites import Site
from gpusq_onnx.graph.structure import Structure
from gpusq_onnx.learn.environment import require_training
from gpusq_onnx.pipeline.base import (
    SKIP,
    Context,
    Fact,
    Pass,
    PlanContext,
    PlanRow,
    Written,
    leftover_rows,
    require_any,
)
from gpusq_onnx.pipeline.details import Pruned, rows_with
from gpusq_onnx.pipeline.facts import SparseWeight
from gpusq_onnx.pipeline.parallel import in_order
from gpusq_onnx.pipeline.schedule import BESIDE, SECOND_ORDER, SLOPES
from gpusq_onnx.pipeline.selectors import EndsOptions, PatternName, Selector, exclusion, require_unquantised
from gpusq_onnx.sparsity import magnitude
from gpusq_onnx.sparsity.patterns import PAIRS_48, TWO_FOUR, USEFUL_SIDE, Pattern, parse_pattern


class PruneOptions(EndsOptions):
    """Options of `prune` and of its names for a pattern."""

    method: Literal["auto", "magnitude", "sparsegpt"] = Field(default="auto", description="how weights are chosen")
    pattern: PatternName = Field(default=TWO_FOUR.name, description="N:M, or 4:8pair for 4-bit tensor cores")
    only: list[str] = Field(
        default=[], description="roles, operators or name patterns to prune; empty: all that can be"
    )
    skip: list[str] = Field(default=[], description="roles, operators or name patterns to leave dense")
    smallest: int = Field(default=SMALLEST, ge=1, description="weights with a side below this stay dense")
    damping: float = Field(
        default=0.01, gt=0, le=1, description="SparseGPT: share of the mean diagonal of H added to it"
    )
    aim: Literal["dense", "layer"] = Field(
        default="dense",
        description="SparseGPT: outputs to come near to: the dense model's, or the layer's own on its inputs",
    )
    rows: Literal["equal", "fisher", "auto"] = Field(
        default="equal",
        description="SparseGPT: what each token or position counts for; fisher: by a classifier's gradients; "
        "auto: the latter where the model is one",
    )
    bias_correction: bool = Field(
        default=True, description="SparseGPT: move biases by the mean output error that is left"
    )


class Prune(Pass[PruneOptions]):
    """See the module's text."""

    name = "prune"
    kind = "prune"
    float_only = True
    summary = "weights to a sparse pattern along the reduction axis, by magnitude or SparseGPT"
    source = "GPUSQ-ViT section 3.2; arXiv 2301.00774"
    Options = PruneOptions

    @property
    def needs_data(self) -> bool:
        return self.options.method == "sparsegpt"

    def work(self, images: int, data: bool) -> float:
        return self._cost * images if self._method(data) == "sparsegpt" else 0.0

    @property
    def _cost(self) -> float:
        """Of SparseGPT, in runs of one image an image."""
        beside = BESIDE if self.options.aim == "dense" else 0.0
        return SECOND_ORDER + beside + (SLOPES if self.options.rows != "equal" else 0.0)

    def writes(self) -> Written:
        return Written(patterns=(self.options.pattern,))

    def ready(self) -> None:
        if self.options.rows != "equal":
            require_training()

    def requires(self, model: Model, structure: Structure) -> None:
        require_unquantised(
            structure.sites,
            "pruning them would change their scales",
            hint="prune the float model first: --passes prune24,qdq-int8",
        )

    def plan(self, model: Model, structure: Structure, given: PlanContext) -> list[PlanRow]:
        if self.options.rows == "fisher" and self._method(given.data) == "sparsegpt":
            answers(model)
        selector = Selector(self.options.only, self.options.skip)
        selector.check(structure.sites, self.name)
        rows = [self._row(site, selector, given.data) for site in structure.sites] + leftover_rows(structure)
        require_any(
            rows,
            "no weight can be pruned",
            else_found="a graph without MatMul, Gemm or Conv weights",
            hint=f"gpusq-onnx plan --full --allow-noop MODEL --passes {self.name} lists every weight",
        )
        self._require_kept(rows, given.facts)
        return rows

    def apply(self, model: Model, structure: Structure, plan: Sequence[PlanRow], context: Context) -> None:
        sites = {site.name: site for site in structure.sites}
        chosen = [(sites[row.tensor], detail) for row, detail in rows_with(plan, Pruned)]
        kept: dict[str, float] = {}
        images = 0 if context.source is None else len(context.source)
        second_order = any(detail.method == "sparsegpt" for _, detail in chosen)
        context.progress.start("pruning", len(chosen), self._cost * images if second_order else 0.0)
        simple = [(site, detail.shape) for site, detail in chosen if detail.method == "magnitude"]
        for (site, _), (pruned, energy) in zip(simple, in_order(_by_magnitude, simple), strict=True):
            site.write(pruned)
            kept[site.name] = energy
            context.progress.advance()
        # A weight that follows the pattern already stays, to the bit: on its own output the pass has nothing to do.
        sequential = [(site, detail.shape) for site, detail in chosen if detail.method == "sparsegpt"]
        sequential = [(site, pattern) for site, pattern in sequential if not pattern.holds(site.read())]
        if sequential:
            self._sparsegpt(model, sequential, context, kept)
        context.progress.finish()
        context.findings["energy_kept"] = kept

    def ensures(self, plan: Sequence[PlanRow]) -> list[Fact]:
        return [SparseWeight(row.tensor, detail.pattern) for row, detail in rows_with(plan, Pruned)]

    @staticmethod
    def _require_kept(rows: Sequence[PlanRow], facts: Sequence[Fact]) -> None:
        """Raise UnsupportedModelError for a weight that has a pattern which SparseGPT's new values would break."""
        had = {fact.site: parse_pattern(fact.pattern) for fact in facts if isinstance(fact, SparseWeight)}
        undone = [
            (row.tensor, old, detail.shape)
            for row, detail in rows_with(rows, Pruned)
            if detail.method == "sparsegpt" and (old := had.get(row.tensor)) is not None
            if not detail.shape.implies(old) and not old.implies(detail.shape)
        ]
        if undone:
            tensor, old, new = undone[0]
            raise UnsupportedModelError(
                f"{len(undone)} weights are {old.name} already, and would no longer be as {new.name}",
                where=tensor,
                hint="one pattern a weight: give each pass its own by only=… and skip=…",
            )

    def _method(self, data: bool) -> Literal["magnitude", "sparsegpt"]:
        """How weights are chosen, with data or without."""
        if self.options.method == "auto":
            return "sparsegpt" if data else "magnitude"
        return self.options.method

    def _row(self, site: Site, selector: Selector, data: bool) -> PlanRow:
        method = self._method(data)
        if method == "sparsegpt" and not observable(site):
            method = "magnitude"
        reason = self._refusal(site, selector)
        head = site.name, site.path, site.role, site.op, (site.out, site.k)
        if reason:
            return PlanRow(*head, SKIP, reason)
        reason = f"{self.options.pattern} along axis {site.k_axis} by {method}"
        if min(site.out, site.k) < USEFUL_SIDE and parse_pattern(self.options.pattern).implies(TWO_FOUR):
            reason += f"; below {USEFUL_SIDE} x {USEFUL_SIDE} TensorRT rarely runs it faster sparse"
        return PlanRow(*head, "prune", reason, Pruned(self.options.pattern, method))

    def _refusal(self, site: Site, selector: Selector) -> str | None:
        group = parse_pattern(self.options.pattern).group
        refused = selector.refuses(site)
        if refused:
            return refused
        if site.channels % group:
            axis = "reduction length" if site.is_linear else "channels"
            return f"{axis} {site.channels} is not a multiple of {group}"
        reason = exclusion(site, self.options, "prune")
        if reason or site.conflicts:
            return reason or site.conflicts[0]
        if not site.is_float:
            return f"stored as {site.dtype}"
        return None

    def _sparsegpt(
        self, model: Model, chosen: list[tuple[Site, Pattern]], context: Context, kept: dict[str, float]
    ) -> None:
        assert context.source is not None
        patterns = {site.name: pattern for site, pattern in chosen}
        damping, correction = self.options.damping, self.options.bias_correction
        dense = self.options.aim == "dense"
        rows = self.options.rows
        fisher = context.seed if rows == "fisher" or (rows == "auto" and classifies(model)) else None
        with Walk(model, [site for site, _ in chosen], context.source, dense=dense, fisher=fisher) as walk:
            context.findings["images"] = walk.images
            for site, gram, target in walk:
                pattern = patterns[site.name]
                kept[site.name] = prune_site(site, pattern, gram, target, damping=damping, bias_correction=correction)
                context.progress.advance()


class Prune24(Prune):
    """`prune` to 2:4: what TensorRT's sparse kernels take."""

    name = "prune24"
    summary = "weights to 2:4 along the reduction axis, by magnitude or SparseGPT"


class Prune48PairOptions(PruneOptions):
    """Options of `prune48pair`."""

    pattern: PatternName = Field(default=PAIRS_48.name, description="4:8pair, the pattern of 4-bit tensor cores")


class Prune48Pair(Prune):
    """`prune` to 4:8 in pairs."""

    name = "prune48pair"
    summary = "weights to 4:8 in pairs, which 4-bit tensor cores take; no library runs it yet"
    Options = Prune48PairOptions


class PruneNmOptions(PruneOptions):
    """Options of `prune-nm`."""

    pattern: PatternName = Field(
        default="1:4", description="N:M with 1 <= N < M <= 64; 1:4, 2:8 and 2:16 run on 2:4 kernels"
    )


class PruneNm(Prune):
    """`prune` to any N:M."""

    name = "prune-nm"
    summary = "weights to any N:M along the reduction axis"
    Options = PruneNmOptions


def _by_magnitude(chosen: tuple[Site, Pattern]) -> tuple[NDArray[Any], float]:
    site, pattern = chosen
    w = site.read()
    pruned = magnitude.prune(w, pattern)
    return pruned, magnitude.energy_kept(w, pruned)
