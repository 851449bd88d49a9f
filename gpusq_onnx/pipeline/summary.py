"""What a model is made of and what it costs, site by site and in all: the report's view of one moment of a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gpusq_onnx.graph.cost import site_cost, total_cost
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.sites import Site
from gpusq_onnx.graph.structure import Structure
from gpusq_onnx.pipeline.base import Fact
from gpusq_onnx.pipeline.facts import is_pruned

State = Callable[[Site], tuple[bool, bool]]


@dataclass(frozen=True)
class Cost:
    """Parameters, macs, bit_operations and bytes (see `graph.cost`), of the model and of each site by name."""

    total: dict[str, float]
    sites: dict[str, dict[str, float]]


def measure(model: Model, structure: Structure, state: State | None = None) -> Cost:
    """The cost of a model; `state` tells (quantised, 2:4) of a site, by default as its values are."""
    found = {site.name: (state or _as_stored)(site) for site in structure.sites}
    sites = {
        site.name: asdict(site_cost(site, structure, quantised=found[site.name][0], sparse=found[site.name][1]))
        for site in structure.sites
    }
    return Cost(total_cost(model, structure, lambda site: found[site.name]), sites)


def as_planned(quantised: set[str], facts: Sequence[Fact]) -> State:
    """The state that a plan leads to: the weights it quantises, and the patterns its passes will establish."""

    def state(site: Site) -> tuple[bool, bool]:
        return site.name in quantised or bool(site.quantised), is_pruned(site, facts)

    return state


def architecture(structure: Structure) -> dict[str, Any]:
    """Blocks, stages, attention and critical feature maps as they were recognised; plain values."""
    return {
        "blocks": len(structure.blocks),
        "stages": [len(stage) for stage in structure.stages],
        "attention_tokens": [attention.tokens for attention in structure.attentions],
        "feature_maps": structure.feature_maps,
    }


def _as_stored(site: Site) -> tuple[bool, bool]:
    return bool(site.quantised), is_pruned(site, ())
