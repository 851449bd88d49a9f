"""Let channels change places, so that a pattern along the reduction axis then keeps more; outputs stay as they are.

    fc2 (and what else reads an MLP's hidden axis)   all hidden channels; fc1's rows and bias, gate and up, follow
    proj                                            the channels of a head, within the head; the rows of v follow

Which channels share a group of four decides what 2:4 takes away. `prune24` after this pass finds better groups. Which
channels may move is found by following them through the graph (`graph.movable`), not by names. How they are ordered:
`sparsity.permutation`. What counts as kept:

    activation   w[o, k]^2 times the variance of input k on calibration data: what removing the weight costs. The inputs
                 are those that it will see: what comes before is pruned by second-order error meanwhile, in a copy
    magnitude    w[o, k]^2
    auto         the first where there is data, the second where not

Rows of q and k may change places, too, within a head; that changes no group along the reduction axis of any weight.

Source: Pool and Yu, "Channel Permutations for N:M Sparsity", NeurIPS 2021; the weighting by activations is ours.
Limits: weights that are sparse already stay; equal to rounding, because sums are taken in another order.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from gpusq_onnx.calibration.channel_order import ChannelOrder, places_of
from gpusq_onnx.calibration.pruning import prune_site, squarable
from gpusq_onnx.calibration.walk import Walk, observable
from gpusq_onnx.graph.exclusions import SMALLEST
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.movable import find_movable
from gpusq_onnx.graph.moves import Movable
from gpusq_onnx.graph.qdq.rescale import own_bias
from gpusq_onnx.graph.sites import Site, find_sites
from gpusq_onnx.graph.structure import Structure
from gpusq_onnx.pipeline.base import SKIP, Context, Detail, Pass, PlanContext, PlanRow, require_any
from gpusq_onnx.pipeline.details import rows_with
from gpusq_onnx.pipeline.schedule import SECOND_ORDER
from gpusq_onnx.pipeline.selectors import EndsOptions, PatternName, Selector, exclusion, require_unquantised
from gpusq_onnx.sparsity.patterns import TWO_FOUR, Pattern, parse_pattern


class PermuteOptions(EndsOptions):
    """Options of `permute`."""

    pattern: PatternName = Field(
        default=TWO_FOUR.name, description="that the weights will be pruned to: N:M, or 4:8pair"
    )
    saliency: Literal["auto", "magnitude", "activation"] = Field(
        default="auto", description="of a weight: what is to be kept"
    )
    only: list[str] = Field(
        default=[], description="roles, operators or name patterns whose inputs to order; empty: all"
    )
    skip: list[str] = Field(
        default=[], description="roles, operators or name patterns whose inputs to leave as they are"
    )
    smallest: int = Field(default=SMALLEST, ge=1, description="weights with a side below this count as left dense")


@dataclass(frozen=True)
class Permuted(Detail):
    """Its input channels are put in another order.

    Attributes:
        saliency: "magnitude" or "activation".
    """

    saliency: Literal["magnitude", "activation"]


class Permute(Pass[PermuteOptions]):
    """See the module's text."""

    name = "permute"
    summary = "channels change places within MLPs and heads, so that a pattern then keeps more; outputs stay"
    source = "Pool and Yu, NeurIPS 2021"
    exact = True
    float_only = True
    Options = PermuteOptions

    @property
    def needs_data(self) -> bool:
        return self.options.saliency == "activation"

    def work(self, images: int, data: bool) -> float:
        return SECOND_ORDER * images if self._by_activation(data) else 0.0

    def requires(self, model: Model, structure: Structure) -> None:
        require_unquantised(
            structure.sites,
            "their scales would have to move, too",
            hint="permute the float model first: --passes permute,prune24,qdq-int8",
        )

    def plan(self, model: Model, structure: Structure, given: PlanContext) -> list[PlanRow]:
        selector = Selector(self.options.only, self.options.skip)
        selector.check(structure.sites, self.name)
        movable = find_movable(model, structure)
        rows = [self._row(site, selector, movable, given.data) for site in structure.sites]
        ordered = [site for site, row in zip(structure.sites, rows, strict=True) if not row.skipped]
        rows = _with_followers(rows, structure, movable, self._ordered(movable, ordered))
        require_any(
            rows,
            "no channels can change places",
            else_found="a graph without MatMul, Gemm or Conv weights",
            hint=f"gpusq-onnx plan --full --allow-noop MODEL --passes {self.name} lists every weight",
        )
        return rows

    def apply(self, model: Model, structure: Structure, plan: Sequence[PlanRow], context: Context) -> None:
        sites = {site.name: site for site in structure.sites}
        rows = rows_with(plan, Permuted)
        movable, pattern = find_movable(model, structure), parse_pattern(self.options.pattern)
        order = ChannelOrder(movable, pattern)
        if by_activation := {row.tensor for row, detail in rows if detail.saliency == "activation"}:
            self._walk(model, structure, by_activation, order, context)
        by_magnitude = [sites[row.tensor] for row, detail in rows if detail.saliency == "magnitude"]
        order.decide({site: np.square(squarable(site).astype(np.float32)) for site in by_magnitude})
        movable.move(order.moved)
        context.findings["energy_kept"] = {name: np.mean(both, axis=0).tolist() for name, both in order.kept.items()}

    def _ordered(self, movable: Movable, sites: Sequence[Site]) -> list[NDArray[np.int64]]:
        """The cohorts whose columns are whole groups of one of these sites."""
        pattern = parse_pattern(self.options.pattern)
        return [c for c in movable.cohorts if any(places_of(site, movable, c, pattern) is not None for site in sites)]

    def _by_activation(self, data: bool) -> bool:
        return self.options.saliency == "activation" or (self.options.saliency == "auto" and data)

    def _row(self, site: Site, selector: Selector, movable: Movable, data: bool) -> PlanRow:
        pattern, detail = parse_pattern(self.options.pattern), None
        reason = selector.refuses(site) or movable.fixed.get(site) or self._refusal(site)
        if not reason:
            counts, writers = [], list[Site]()
            for cohort in movable.cohorts:
                if (columns := places_of(site, movable, cohort, pattern)) is not None:
                    counts.append(columns.shape[1])
                    writers += [writer for writer in movable.writers(cohort) if writer not in writers]
            reason = f"no whole group of {pattern.group} of its input channels may change places"
            if counts:
                detail = Permuted("activation" if self._by_activation(data) and observable(site) else "magnitude")
                times = f"{len(counts)} times {counts[0]}" if len(counts) > 1 else f"{counts[0]}"
                names = ", ".join(writer.path or writer.name for writer in writers)
                reason = f"{times} channels by {detail.saliency}, with the rows of {names}"
        decision = "permute" if detail else SKIP
        return PlanRow(site.name, site.path, site.role, site.op, (site.out, site.k), decision, reason, detail or {})

    def _refusal(self, site: Site) -> str | None:
        reason = exclusion(site, self.options, "prune")
        if reason is None and not site.is_float:
            reason = f"stored as {site.dtype}"
        return reason or (f"{site.patterns[0].name} already" if site.patterns else None)

    def _walk(
        self, model: Model, structure: Structure, names: Collection[str], order: ChannelOrder, context: Context
    ) -> None:
        """Decide the order of the inputs of these weights, one by one, in a copy that is pruned on the way."""
        assert context.source is not None
        pattern = parse_pattern(self.options.pattern)
        own = {site.name: site for site in structure.sites if observable(site) and self._prunable(site, pattern)}
        copy = model.clone()
        copies = [site for site in find_sites(copy) if site.name in own]
        context.progress.start("ordering channels", len(copies), SECOND_ORDER * len(context.source))
        with Walk(copy, copies, context.source) as walk:
            context.findings["images"] = walk.images
            for site, gram, _ in walk:
                if site.name in names:
                    seen = gram.energies(centred=own_bias(site) is not None)
                    order.decide({own[site.name]: np.square(squarable(site).astype(np.float32)) * seen})
                prune_site(site, pattern, gram, order=order.columns(own[site.name]))
                context.progress.advance()
        context.progress.finish()

    def _prunable(self, site: Site, pattern: Pattern) -> bool:
        return site.channels % pattern.group == 0 and not self._refusal(site) and not site.conflicts


def _with_followers(
    rows: Sequence[PlanRow], structure: Structure, movable: Movable, ordered: Sequence[NDArray[np.int64]]
) -> list[PlanRow]:
    """The rows, and those of weights that only follow."""
    moving = np.concatenate([cohort.ravel() for cohort in ordered]) if ordered else np.empty(0, np.int64)
    followers = {
        site
        for channels_of in (movable.rows, movable.columns)
        for site, channels in channels_of.items()
        if np.isin(channels, moving).any()
    }
    reason = "its channels follow those of a weight that is ordered"
    return [
        replace(row, decision="permute", reason=reason) if row.skipped and site in followers else row
        for site, row in zip(structure.sites, rows, strict=True)
    ]
