"""The pictures of the page, as SVG text for HTML: drawn by matplotlib, the same bytes from the same values.

Text stays text, so that it can be searched and follows the page's font. Needs the extra `report`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAMED = 16  # curves with a legend
_BEFORE, _AFTER, _MARK = "#b8c0cc", "#2a7f3f", "#b3261e"


def ratios(values: Mapping[str, tuple[float, float]]) -> str:
    """Bars of after / before, one a name, with the number at its end."""
    figure = _figure(6.5, 0.5 + 0.4 * len(values))
    axes: Any = figure.subplots()
    shares = [after / before if before else 0.0 for before, after in values.values()]
    axes.barh(list(values), [1.0] * len(values), color=_BEFORE)
    bars = axes.barh(list(values), shares, color=_AFTER)
    axes.bar_label(bars, labels=[f"{share:.1%}" for share in shares], padding=3)
    axes.set_xlim(0, max(1.0, *shares) * 1.12)
    axes.invert_yaxis()
    axes.set_xlabel("after / before")
    return _svg(figure, "ratios")


def bytes_of_weights(before: Sequence[float], after: Sequence[float]) -> str:
    """Bytes of each weight in graph order, before and after, on one another."""
    figure = _figure(9.5, 2.6)
    axes: Any = figure.subplots()
    places = range(len(before))
    axes.bar(places, [size / 1024 for size in before], color=_BEFORE, label="before", width=0.9)
    axes.bar(places, [size / 1024 for size in after], color=_AFTER, label="after", width=0.9)
    axes.set_xlabel("weight, in graph order")
    axes.set_ylabel("KiB")
    axes.legend(frameon=False)
    return _svg(figure, "bytes")


def curves(rows: Sequence[Mapping[str, Any]], names: Sequence[str], salt: str) -> str:
    """Each named column over `step`, on a logarithmic axis where all values are positive."""
    figure = _figure(9.5, 3.0)
    axes: Any = figure.subplots()
    positive = True
    for name in names:
        points = [(row["step"], row[name]) for row in rows if isinstance(row.get(name), (int, float))]
        if points:
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, label=name, linewidth=2.0 if name == "loss" else 1.0)
            positive = positive and min(values) > 0
    if positive:
        axes.set_yscale("log")
    axes.set_xlabel("step")
    if len(names) <= _NAMED:
        axes.legend(frameon=False, fontsize=8, ncols=2)
    axes.grid(alpha=0.3)
    return _svg(figure, salt)


def distances(values: Sequence[float | None], tolerance: float, first: int | None) -> str:
    """Distance of each inner tensor in graph order, the tolerance as a line, the first that leaves it marked."""
    figure = _figure(9.5, 2.6)
    axes: Any = figure.subplots()
    known = [(place, value) for place, value in enumerate(values) if value is not None]
    axes.plot([place for place, _ in known], [value for _, value in known], ".-", color=_AFTER, linewidth=0.8)
    axes.axhline(tolerance, color=_BEFORE, linestyle="--", label=f"tolerance {tolerance:g}")
    if first is not None:
        axes.axvline(first, color=_MARK, linewidth=1.0, label="first to leave it")
    axes.set_xlabel("inner tensor, in graph order")
    axes.set_ylabel("distance")
    axes.legend(frameon=False, fontsize=8)
    return _svg(figure, "distances")


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _svg(figure: Figure, salt: str) -> str:
    """The figure's SVG element alone; `salt` keeps the identifiers of two pictures on one page apart."""
    import matplotlib

    text = StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt, "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return re.sub(r"<metadata>.*?</metadata>\s*", "", text.getvalue()[text.getvalue().index("<svg") :], flags=re.DOTALL)
