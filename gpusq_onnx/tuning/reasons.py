"""Why each layer is what it is: a row for every group, and for every weight that is in none."""

from __future__ import annotations

from collections.abc import Mapping

from gpusq_onnx.report.tuning import ReasonedLayer
from gpusq_onnx.tuning.groups import Groups
from gpusq_onnx.tuning.search import hull
from gpusq_onnx.tuning.treatments import DENSE


def layers(groups: Groups, losses: Mapping[str, Mapping[str, float]], choice: Mapping[str, str]) -> list[ReasonedLayer]:
    """The rows, in graph order, then those outside."""
    found = []
    for group in groups.groups:
        form, own = choice[group.name], losses[group.name]
        share = {name: operations / groups.total for name, operations in group.operations.items()}
        stops = hull({name: (group.operations[name], own[name]) for name in group.operations})
        saved = share[DENSE] - share[form]
        said = [f"saves {saved:.2%} of the operations for a loss of {own[form]:.2g}" if form != DENSE else "stays"]
        cheaper = [name for name in stops if share[name] < share[form]]
        if cheaper:
            more = share[form] - share[cheaper[0]]
            said.append(f"{cheaper[0]} would save {more:.2%} more for a loss of {own[cheaper[0]]:.2g}")
        worse = [n for n in group.operations if n not in stops and share[n] < share[form]]
        said += [f"{name} loses {own[name]:.2g}" for name in worse]
        found.append(ReasonedLayer(group.name, group.sites, form, share[form], own[form], "; ".join(said)))
    return [*found, *_outside(groups)]


def _outside(groups: Groups) -> list[ReasonedLayer]:
    reasons: dict[str, list[str]] = {name: [] for name in groups.outside}
    for row in (row for rows in groups.rows.values() for row in rows if row.tensor in reasons):
        reasons[row.tensor].append(row.reason)
    return [
        ReasonedLayer(name, (name,), DENSE, groups.outside[name] / groups.total, 0.0, "; ".join(dict.fromkeys(said)))
        for name, said in reasons.items()
    ]
