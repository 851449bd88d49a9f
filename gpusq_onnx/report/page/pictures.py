"""The pictures of the page, as SVG text for HTML: drawn by matplotlib, the same bytes from the same values.

Text stays text, so that it can be searched and follows the page's font. Colours are those of the page's theme: what is
drawn in a placeholder colour becomes a CSS variable, and the ink becomes `currentColor`. Needs the extra `report`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

from gpusq_onnx.report.tuning import COSTS, Cost, JudgedPoint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAMED = 16  # curves with a legend
_WIDE = 7.2  # inches
_ACROSS = 4  # histograms in a row
_LONGEST = 28  # characters of a name
_BEFORE, _AFTER, _MARK, _INK = "#b8c0cc", "#2a7f3f", "#b3261e", "#010203"
_THEME = {_BEFORE: "var(--before)", _AFTER: "var(--after)", _MARK: "var(--mark)", _INK: "currentColor"}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "axes.axisbelow": True,
}


@dataclass(frozen=True)
class HistogramBars:
    """One histogram.

    Attributes:
        counts: of what is shown, between `edges`, one more.
        ends: of the grid that it is rounded to.
        before: counts of what it was; empty where there is nothing to compare with.
    """

    name: str
    edges: Sequence[float]
    counts: Sequence[float]
    ends: Sequence[float] = ()
    before: Sequence[float] = ()


def ratios(values: Mapping[str, tuple[float, float]]) -> str:
    """Bars of after / before, one a name, with the number at its end."""

    def draw(figure: Figure) -> None:
        axes: Any = figure.subplots()
        shares = [after / before if before else 0.0 for before, after in values.values()]
        axes.barh(list(values), [1.0] * len(values), color=_BEFORE)
        bars = axes.barh(list(values), shares, color=_AFTER)
        axes.bar_label(bars, labels=[f"{share:.1%}" for share in shares], padding=3)
        axes.set_xlim(0, max(1.0, *shares) * 1.12)
        axes.invert_yaxis()
        axes.set_xlabel("after / before")

    return _drawn(_WIDE, 0.6 + 0.32 * len(values), draw, "ratios")


def bytes_of_weights(before: Sequence[float], after: Sequence[float]) -> str:
    """Bytes of each weight in graph order, before and after, on one another."""

    def draw(figure: Figure) -> None:
        axes: Any = figure.subplots()
        places = range(len(before))
        axes.bar(places, [size / 1024 for size in before], color=_BEFORE, label="before", width=0.9)
        axes.bar(places, [size / 1024 for size in after], color=_AFTER, label="after", width=0.9)
        axes.set_xlabel("weight, in graph order")
        axes.set_ylabel("KiB")
        axes.legend()

    return _drawn(_WIDE, 2.4, draw, "bytes")


def curves(rows: Sequence[Mapping[str, Any]], names: Sequence[str], salt: str) -> str:
    """Each named column over `step`, on a logarithmic axis where all values are positive."""

    def draw(figure: Figure) -> None:
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
        axes.xaxis.get_major_locator().set_params(integer=True)
        if len(names) <= _NAMED:
            axes.legend(ncols=2)
        axes.grid(alpha=0.3)

    return _drawn(_WIDE, 2.8, draw, salt)


def distances(values: Sequence[float | None], tolerance: float, first: int | None) -> str:
    """Distance of each inner tensor in graph order, the tolerance as a line, the first that leaves it marked."""

    def draw(figure: Figure) -> None:
        axes: Any = figure.subplots()
        known = [(place, value) for place, value in enumerate(values) if value is not None]
        axes.plot([place for place, _ in known], [value for _, value in known], ".-", color=_AFTER, linewidth=0.8)
        axes.axhline(tolerance, color=_BEFORE, linestyle="--", label=f"tolerance {tolerance:g}")
        if first is not None:
            axes.axvline(first, color=_MARK, linewidth=1.0, label="first to leave it")
        axes.set_xlabel("inner tensor, in graph order")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylabel("distance")
        axes.legend()

    return _drawn(_WIDE, 2.4, draw, "distances")


def layers(names: Sequence[str], columns: Mapping[str, Sequence[float | None]], salt: str) -> str:
    """A row a layer, a panel a column of shares, all from 0."""

    def draw(figure: Figure) -> None:
        panels: Any = figure.subplots(1, len(columns), sharey=True, squeeze=False)
        for axes, (title, values) in zip(panels[0], columns.items(), strict=True):
            axes.barh(range(len(names)), [value or 0.0 for value in values], color=_AFTER, height=0.8)
            axes.set_title(title, fontsize=9)
            axes.set_xlim(left=0)
            axes.margins(y=0.01)
            axes.grid(axis="x", alpha=0.3)
        panels[0][0].set_yticks(range(len(names)), [_cut(name) for name in names], fontsize=7)
        panels[0][0].invert_yaxis()

    return _drawn(_WIDE, 0.7 + 0.155 * len(names), draw, salt)


def histograms(panels: Sequence[HistogramBars], salt: str) -> str:
    """Small histograms, four in a row: what is compared on top, the ends of the grid as lines."""
    rows = -(-len(panels) // _ACROSS)

    def draw(figure: Figure) -> None:
        grid: Any = figure.subplots(rows, _ACROSS, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for axes, panel in zip(grid.flat, panels, strict=False):
            axes.set_axis_on()
            axes.set_yscale("symlog", linthresh=max(1.0, 1e-3 * max(panel.counts)))
            axes.yaxis.set_visible(False)
            axes.spines["left"].set_visible(False)
            axes.tick_params(labelsize=6, length=2)
            axes.set_title(_cut(panel.name), fontsize=7)
            if panel.before:
                axes.stairs(panel.before, panel.edges, fill=True, color=_BEFORE)
            axes.stairs(panel.counts, panel.edges, fill=not panel.before, color=_AFTER, linewidth=0.9)
            for end in panel.ends:
                axes.axvline(end, color=_MARK, linewidth=0.8)

    return _drawn(_WIDE, 0.2 + 1.15 * rows, draw, salt)


def pareto(points: Sequence[JudgedPoint], chosen: str, cost: Cost) -> str:
    """Divergence over the share of what is saved; those that no other beats are joined, the chosen one is marked."""

    def draw(figure: Figure) -> None:
        axes: Any = figure.subplots()
        best = sorted((point.of(cost), point.values["kl"]) for point in points if point.pareto)
        axes.plot(*zip(*best, strict=True), "-", color=_BEFORE, zorder=1)
        for point in points:
            place = point.of(cost), point.values["kl"]
            marked = point.name == chosen
            shape = "^" if point.trained else "o"
            axes.plot(*place, shape, color=_MARK if marked else _AFTER, markersize=7 if marked else 5)
            if marked or not point.name.startswith("search"):
                axes.annotate(_cut(point.name), place, xytext=(5, 4), textcoords="offset points", fontsize=7)
        if min(kl for _, kl in best) > 0:
            axes.set_yscale("log")
        axes.set_xlabel(f"share of the dense {COSTS[cost]}")
        axes.set_ylabel("KL divergence")
        axes.grid(alpha=0.3)
        axes.margins(x=0.12)

    return _drawn(_WIDE, 3.2, draw, "pareto")


def sensitivities(names: Sequence[str], forms: Mapping[str, Sequence[float | None]]) -> str:
    """What each group costs in each form, on a logarithmic axis."""

    def draw(figure: Figure) -> None:
        axes: Any = figure.subplots()
        for form, losses in forms.items():
            known = [(loss, place) for place, loss in enumerate(losses) if loss is not None and loss > 0]
            if known:
                axes.plot(*zip(*known, strict=True), "o", markersize=4, label=form)
        axes.set_xscale("log")
        axes.set_yticks(range(len(names)), [_cut(name) for name in names], fontsize=7)
        axes.invert_yaxis()
        axes.set_xlabel("divergence of the outputs")
        axes.grid(alpha=0.3)
        axes.legend(ncols=len(forms), loc="lower center", bbox_to_anchor=(0.5, 1.0))

    return _drawn(_WIDE, 1.0 + 0.155 * len(names), draw, "sensitivities")


def _cut(name: str) -> str:
    """A name that fits beside a picture, without what torch's exporters end it with and matplotlib's mathematics."""
    name = name.removesuffix("_output_0")
    short = name if len(name) <= _LONGEST else f"…{name[1 - _LONGEST :]}"
    return short.replace("$", r"\$")


def _drawn(width: float, height: float, draw: Callable[[Figure], None], salt: str) -> str:
    """A figure of so many inches as its SVG element; `salt` keeps the identifiers of two pictures on a page apart."""
    import matplotlib
    from matplotlib.figure import Figure

    text = StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": salt}):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()[text.getvalue().index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    for colour, variable in _THEME.items():
        svg = svg.replace(colour, variable)
    return svg
