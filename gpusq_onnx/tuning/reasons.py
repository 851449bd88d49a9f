"""Why each layer is what it is: a row for every group, and for every weight and attention core that is in none."""

from __future__ import annotations

from collections.abc import Mapping

from gpusq_onnx.report.tuning import Cost, ReasonedLayer
from gpusq_onnx.tuning.groups import Groups
from gpusq_onnx.tuning.search import hull
from gpusq_onnx.tuning.treatments import DENSE


def layers(
    groups: Groups, losses: Mapping[str, Mapping[str, float]], choice: Mapping[str, str], cost: Cost = "operations"
) -> list[ReasonedLayer]:
    """The rows, in graph order, then those outside; `cost` is what was saved."""
    found, what, whole = [], "operations" if cost == "operations" else "bytes", groups.whole(cost)
    for group in groups.groups:
        form, own = choice[group.name], losses[group.name]
        costs = group.costs(cost)
        share = {name: own_cost / whole for name, own_cost in costs.items()}
        stops = hull({name: (costs[name], own[name]) for name in costs})
        saved = share[DENSE] - share[form]
        said = [f"saves {saved:.2%} of the {what} for a loss of {own[form]:.2g}" if form != DENSE else "stays"]
        cheaper = [name for name in stops if share[name] < share[form]]
        if cheaper:
            more = share[form] - share[cheaper[0]]
            said.append(f"{cheaper[0]} would save {more:.2%} more for a loss of {own[cheaper[0]]:.2g}")
        worse = [n for n in costs if n not in stops and share[n] < share[form]]
        said += [f"{name} loses {own[name]:.2g}" for name in worse]
        found.append(ReasonedLayer(group.name, group.sites, form, share[form], own[form], "; ".join(said)))
    for other in groups.outside:
        left, own_share = other.group, other.group.costs(cost)[DENSE] / whole
        found.append(ReasonedLayer(left.name, left.sites, DENSE, own_share, 0.0, other.reason))
    return found
