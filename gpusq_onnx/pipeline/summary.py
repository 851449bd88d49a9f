"""What a model is made of and what it costs, site by site and in all: the report's view of one moment of a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from gpusq_onnx.graph.cost import Constants, CostForm, form_of, site_cost, total_cost
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.rewrites.canonical import countable
from gpusq_onnx.graph.sites import Site
from gpusq_onnx.graph.structure import Structure, analyse
from gpusq_onnx.pipeline.base import Fact, PlanRow
from gpusq_onnx.pipeline.details import QdqPair, TensorPair, WeightPair
from gpusq_onnx.pipeline.facts import pattern_of
from gpusq_onnx.quant.formats import FORMATS, Format
from gpusq_onnx.quant.schemes import Quantised
from gpusq_onnx.runtime.ort import silenced

_SCALE_BITS = FORMATS["fp32"].bits


@dataclass(frozen=True)
class Planned:
    """What a plan leads to.

    Attributes:
        form: of a site.
        scales: the initializers that will come.
    """

    form: Callable[[Site], CostForm]
    scales: Sequence[Constants] = ()


@dataclass(frozen=True)
class Cost:
    """The measures of `graph.cost`.

    Attributes:
        total: of the model.
        sites: of each site, by name.
    """

    total: dict[str, float]
    sites: dict[str, dict[str, float]]

    def in_files(self, size: int) -> Cost:
        """The same of a model whose files have so many bytes."""
        return replace(self, total={"file_bytes": size, **self.total})


def measure(model: Model, structure: Structure, planned: Planned | None = None) -> Cost:
    """The cost of a model, by default as it is stored."""
    planned = planned or Planned(_as_stored)
    found = {site.name: planned.form(site) for site in structure.sites}
    sites = {site.name: asdict(site_cost(site, structure, found[site.name])) for site in structure.sites}
    return Cost(total_cost(model, structure, lambda site: found[site.name], planned.scales), sites)


def measure_countable(model: Model, structure: Structure, planned: Planned | None = None) -> Cost:
    """The same of a model in which products may hide their weights (`graph.rewrites.canonical.countable`)."""
    with silenced():
        shown = countable(model)
    return measure(shown, structure if shown is model else analyse(shown), planned)


def as_planned(rows: Sequence[PlanRow], facts: Sequence[Fact]) -> Planned:
    """The forms that a plan leads to: what its rows quantise, and the patterns that its passes will establish."""
    weights: dict[str, Format] = {}
    inputs: dict[str, Format] = {}
    for row in rows:
        if isinstance(row.detail, WeightPair):
            weights[row.tensor] = row.detail.numbers
        elif isinstance(row.detail, TensorPair) and row.detail.side == "input":
            inputs |= dict.fromkeys(row.detail.sites, row.detail.numbers)

    def form(site: Site) -> CostForm:
        planned = Quantised(weights[site.name], inputs.get(site.name)) if site.name in weights else None
        return form_of(site, pattern_of(site, facts), planned)

    return Planned(form, [one for row in rows for one in _scales(row)])


def _scales(row: PlanRow) -> Iterator[Constants]:
    """The scales that a row brings: see `quant.scales`."""
    pair = row.detail
    if not isinstance(pair, WeightPair):
        if isinstance(pair, QdqPair):
            yield Constants(1, _SCALE_BITS)
        return
    out, k = (size for size in row.shape if isinstance(size, int))
    under = FORMATS.get(pair.numbers.scales)
    yield Constants(out * (k // pair.block if pair.block else 1), _SCALE_BITS if under is None else under.bits)
    if under is not None:
        yield Constants(1, _SCALE_BITS)


@dataclass(frozen=True)
class Architecture:
    """How a model was understood.

    Attributes:
        blocks: how many.
        stages: the number of blocks of each.
        attention_tokens: of each core; None where it is not known.
        feature_maps: the critical ones.
    """

    blocks: int
    stages: tuple[int, ...]
    attention_tokens: tuple[int | None, ...]
    feature_maps: tuple[str, ...]

    @classmethod
    def of(cls, structure: Structure) -> Architecture:
        """As it was recognised."""
        return cls(
            len(structure.blocks),
            tuple(map(len, structure.stages)),
            tuple(attention.tokens for attention in structure.attentions),
            tuple(structure.feature_maps),
        )

    @property
    def text(self) -> str:
        """Blocks and stages in words."""
        return f"{self.blocks} blocks in stages of {' + '.join(map(str, self.stages)) or 'none'}"


def _as_stored(site: Site) -> CostForm:
    return form_of(site, pattern_of(site, ()))
