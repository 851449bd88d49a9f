"""How many times smaller each compressed model is, as a picture: packed files, beside the ratios of the paper."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools.paper.rows import FORMATS, ROWS

_COLOURS = {"int8": "#2a7f3f", "int4": "#3568a8"}


def draw(records: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Write an SVG of the rows that were run; the same records, the same bytes. Needs matplotlib."""
    import matplotlib
    from matplotlib.figure import Figure

    rows = [row for row in ROWS if any(f"{row.model}.{key}" in records for key in FORMATS)]
    figure = Figure(figsize=(8, 1.2 + 0.5 * max(1, len(rows))), layout="constrained")
    axes = figure.add_subplot(xlabel="dense file / packed file")
    for place, (key, form) in enumerate(FORMATS.items()):
        run = [(at, row) for at, row in enumerate(rows) if f"{row.model}.{key}" in records]
        times = [
            records[f"{r.model}.shapes"]["file_bytes"] / records[f"{r.model}.{key}"]["packed_bytes"] for _, r in run
        ]
        at = [number + 0.38 * (place - 0.5) for number, _ in run]
        bars = axes.barh(at, times, height=0.36, color=_COLOURS[key], label=form.name)
        axes.bar_label(bars, labels=[f"{value:.2f}" for value in times], padding=3)
        axes.axvline(form.params, color=_COLOURS[key], linestyle=":", label=f"the paper's Params, {form.params} x")
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.invert_yaxis()
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12 - 0.6 / (1 + len(rows))), ncols=2, frameon=False)
    with matplotlib.rc_context({"svg.hashsalt": "paper"}):
        figure.savefig(path, metadata={"Date": None})
