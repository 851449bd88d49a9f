"""The stand-ins' table: a row for each system, metric and exporter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gpusq_onnx.report.markdown import table
from tools.standins.systems import FORMS, SYSTEMS

BARS = {"INT8 2:4": 1.0, "INT4 4:8": 2.0}
"""Points, or AP, that a form may lose."""

Result = Mapping[str, Any]


def rows(results: Sequence[Result]) -> list[str]:
    """Markdown lines; scores in points, the difference in brackets."""
    header = ["system", "exporter", "score", "float", *FORMS, *(f"agreement {form}" for form in FORMS)]
    cells = []
    for name, system in SYSTEMS.items():
        of = [r for r in results if r["system"] == name]
        for exporter in dict.fromkeys(r["exporter"] for r in of):
            forms = {r["form"]: r for r in of if r["exporter"] == exporter}
            for key, title in system.metrics.items():
                dense = next(iter(forms.values()))["dense"][key]
                scores = [_score(forms.get(form), key) for form in FORMS]
                agree = [_agreement(forms.get(form)) for form in FORMS]
                cells.append([system.paper, exporter, title, f"{100 * dense:.1f}", *scores, *agree])
    return table(header, cells)


def verdicts(results: Sequence[Result]) -> list[str]:
    """One line for each bar that is not met."""
    found = []
    for r in results:
        system = SYSTEMS[r["system"]]
        where = f"{system.paper}, {r['exporter']}"
        for key, title in system.metrics.items():
            lost = 100 * (r["dense"][key] - r["scores"][key])
            if lost > BARS[r["form"]]:
                found.append(f"{where}: {r['form']} loses {lost:.1f} of {title}, {BARS[r['form']]:g} allowed")
        first = next(iter(system.metrics))
        if r["dense"][first] < system.bar:
            found.append(f"{where}: the float model has {100 * r['dense'][first]:.1f}, {100 * system.bar:g} wanted")
    return list(dict.fromkeys(found))


def _score(result: Result | None, key: str) -> str:
    if result is None:
        return "-"
    score, dense = result["scores"][key], result["dense"][key]
    return f"{100 * score:.1f} ({100 * (score - dense):+.1f})"


def _agreement(result: Result | None) -> str:
    """Share of classes; for a detector the cosine of its logits."""
    if result is None:
        return "-"
    return f"cosine {result['cosine']:.3f}" if result["agreement"] is None else f"{100 * result['agreement']:.1f} %"
