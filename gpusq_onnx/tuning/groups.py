"""What is chosen together: the layers that read one tensor, and each attention core; with what every form would cost.

Layers that read one tensor (q, k and v) share its Q/DQ pair, so they are one group: "block 3 fc1". An attention core is
the four operands of its two products: "block 3 attention".

    operations = macs * bits(weight) * bits(data) * density      (`graph.cost`, for one image)
    packed     = weights * (bits(weight) * density + bits of the pattern) / 8

Here the attention products count, too, in the float type or in INT8. What no form on offer changes by default is
outside: it counts as it is, with the passes' reasons.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gpusq_onnx.errors import NothingMatched
from gpusq_onnx.graph.attention import Attention
from gpusq_onnx.graph.cost import SiteCost, attention_macs, form_of, site_cost, total_cost
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.sites import Site
from gpusq_onnx.graph.structure import Structure
from gpusq_onnx.pipeline import table
from gpusq_onnx.pipeline.base import PlanContext, PlanRow
from gpusq_onnx.pipeline.details import OperandPair, rows_with
from gpusq_onnx.quant.schemes import Quantised
from gpusq_onnx.report.tuning import Cost, Group
from gpusq_onnx.tuning.treatments import DENSE, TREATMENTS, Treatment

PRUNE = "prune24"
QUANTISE: Mapping[str, str] = {"int8": "qdq-int8", "w4a8": "qdq-int4"}  # the pass of each scheme
ATTENTION = "int8"  # the form of an attention core's operands in every scheme


@dataclass(frozen=True)
class Outside:
    """A weight or an attention core that stays as it is.

    Attributes:
        group: of it alone; its one form is dense.
        reason: the passes', in words.
    """

    group: Group
    reason: str


@dataclass(frozen=True)
class Groups:
    """All groups of a model.

    Attributes:
        groups: in graph order.
        total: bit operations of the whole dense model, with what is in no group.
        outside: what is in no group, weights first.
        rows: by pass name, the plan with its default options.
        packed: packed bytes of the whole dense model, with what is in no group.
    """

    groups: tuple[Group, ...]
    total: float
    outside: tuple[Outside, ...]
    rows: Mapping[str, Sequence[PlanRow]]
    packed: float = 0.0

    def whole(self, cost: Cost) -> float:
        """What the dense model costs."""
        return self.total if cost == "operations" else self.packed

    def share(self, choice: Mapping[str, str], cost: Cost = "operations") -> float:
        """The share of the whole that is left when each group, by name, has the form of `choice`."""
        whole, costs = self.whole(cost), {g.name: g.costs(cost) for g in self.groups}
        saved = sum(costs[g.name][DENSE] - costs[g.name][choice[g.name]] for g in self.groups)
        return (whole - saved) / whole


def find_groups(model: Model, structure: Structure, treatments: Sequence[Treatment]) -> Groups:
    """The groups of a float model, each with the forms among `treatments` that its layers can have.

    Raises:
        UnsupportedModelError: the model is quantised already.
        NothingMatched: no layer can be pruned or quantised.
    """
    names = [name for treatment in treatments for name in passes_of(treatment)]
    if any(treatment.scheme and treatment.scheme.attention for treatment in treatments):
        names.append(QUANTISE[ATTENTION])
    rows = {name: _rows(name, model, structure) for name in dict.fromkeys(names)}
    treated = {name: {row.tensor for row in found if not row.skipped} for name, found in rows.items()}
    place = {id(node): index for index, node in enumerate(model.graph.nodes)}
    by_input: dict[str, list[Site]] = {}
    for site in structure.sites:
        if any(site.name in names for names in treated.values()):
            by_input.setdefault(site.activation.name, []).append(site)
    groups = [_layers(sites, structure, treatments, treated, place) for sites in by_input.values()]
    reached = {pair.attention for found in rows.values() for _, pair in rows_with(found, OperandPair)}
    cores = [
        _attention(number, attention, structure, treatments if number in reached else (), place)
        for number, attention in enumerate(structure.attentions)
    ]
    groups = [group for group in (*groups, *cores) if len(group.operations) > 1]
    if not groups:
        raise NothingMatched("no layer can be pruned or quantised", hint="gpusq-onnx plan MODEL -p prune24 says why")
    inside = {name for group in groups for name in group.sites}
    outside = [
        Outside(_layers([site], structure, (TREATMENTS[DENSE],), treated, place, site.name), _reasons(rows, site.name))
        for site in structure.sites
        if site.name not in inside
    ]
    for core, attention in zip(cores, structure.attentions, strict=True):
        if len(core.operations) == 1:
            said = _reasons(rows, attention.context.inputs[0].name)
            outside.append(Outside(core, said or "no weights to prune, and no form on offer quantises its operands"))
    totals = total_cost(model, structure, lambda site: form_of(site, None))
    dense = totals["bit_operations"] + sum(core.operations[DENSE] for core in cores)
    ordered = _unique(sorted(groups, key=lambda group: group.depth))
    return Groups(ordered, dense, tuple(outside), rows, totals["packed_bytes"])


def passes_of(treatment: Treatment) -> list[str]:
    """The passes that make a group what a row of the table says, in order."""
    pruned = [PRUNE] if treatment.pattern is not None else []
    return pruned + ([QUANTISE[treatment.scheme.name]] if treatment.scheme is not None else [])


def _rows(name: str, model: Model, structure: Structure) -> Sequence[PlanRow]:
    step = table.one(name)
    try:
        step.requires(model, structure)
        return step.plan(model, structure, PlanContext(data=True))
    except NothingMatched:
        return ()


def _reasons(rows: Mapping[str, Sequence[PlanRow]], tensor: str) -> str:
    """What the passes say of a tensor, each reason once."""
    return "; ".join(dict.fromkeys(row.reason for found in rows.values() for row in found if row.tensor == tensor))


def _layers(
    sites: Sequence[Site],
    structure: Structure,
    treatments: Sequence[Treatment],
    treated: Mapping[str, set[str]],
    place: Mapping[int, int],
    name: str = "",
) -> Group:
    costs = {
        treatment.name: [_cost(site, structure, treatment, treated) for site in sites]
        for treatment in treatments
        if all(any(site.name in treated[name] for site in sites) for name in passes_of(treatment))
    }
    first, role = sites[0], "+".join(dict.fromkeys(site.role for site in sites))
    name = name or (f"block {first.block} {role}" if first.block is not None else first.path or first.name)
    operations = {form: sum(cost.bit_operations for cost in found) for form, found in costs.items()}
    packed = {form: sum(cost.packed_bytes for cost in found) for form, found in costs.items()}
    names = tuple(site.name for site in sites)
    return Group(name, role, place[id(first.readers[0])], names, None, operations, packed=packed)


def _cost(site: Site, structure: Structure, treatment: Treatment, treated: Mapping[str, set[str]]) -> SiteCost:
    scheme = treatment.scheme
    pruned = treatment.pattern is not None and site.name in treated[PRUNE]
    quantised = scheme is not None and site.name in treated[QUANTISE[scheme.name]]
    planned = Quantised(scheme.weight, scheme.input) if scheme is not None and quantised else None
    return site_cost(site, structure, form_of(site, treatment.pattern if pruned else None, planned))


def _attention(
    number: int,
    attention: Attention,
    structure: Structure,
    treatments: Sequence[Treatment],
    place: Mapping[int, int],
) -> Group:
    macs = attention_macs(attention, structure)
    width = 8 * structure.types.get(attention.context.outputs[0].name, np.dtype(np.float32)).itemsize
    narrow = next((t.scheme.attention.bits for t in treatments if t.scheme and t.scheme.attention), None)
    operations = {DENSE: float(macs * width**2)} | ({} if narrow is None else {ATTENTION: float(macs * narrow**2)})
    block = attention.proj.block if attention.proj is not None else None
    name = f"block {block} attention" if block is not None else f"attention {number}"
    packed = dict.fromkeys(operations, 0.0)
    return Group(name, "attention", place[id(attention.scores)], (), number, operations, packed=packed)


def _unique(groups: Sequence[Group]) -> tuple[Group, ...]:
    """The groups with a number after names that several have."""
    seen: Counter[str] = Counter()
    found = []
    for group in groups:
        seen[group.name] += 1
        repeated = seen[group.name] > 1
        found.append(replace(group, name=f"{group.name} #{seen[group.name]}") if repeated else group)
    return tuple(found)
