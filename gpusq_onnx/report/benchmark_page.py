"""A benchmark as Markdown, in the form of the paper's Table 2, readable as plain text; and as a bar chart.

Latency is the time of a batch of one; throughput is batch / time. In brackets: times the reference's speed. The chart
needs matplotlib (extra `report`).
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpusq_onnx import __version__
from gpusq_onnx.errors import EnvironmentLacking, UsageError
from gpusq_onnx.report.benchmark import Benchmark, BenchmarkRow, Cell
from gpusq_onnx.report.markdown import assemble, table

FORMATS = (".png", ".svg", ".pdf")


def digest(found: Benchmark) -> str:
    """The whole page."""
    lines = [f"# {found.backend}", "", *(f"- {line}" for line in machine(found))]
    lines += [f"- **note**: {note}" for note in found.notes]
    choices = ["", "## What serves", "", *(f"- {choice}" for choice in found.choices)] if found.choices else []
    return assemble([*lines, "", *table(*columns(found)), *choices])


def machine(found: Benchmark) -> list[str]:
    """What it was timed on, and how, one line each."""
    gpu = found.machine.get("gpu")
    lines = []
    if gpu:
        clocks = ", ".join(f"{key} {gpu[key]}" for key in ("clocks.sm", "clocks.mem", "power.draw") if key in gpu)
        lines.append(f"GPU: {gpu['name']}" + (f", driver {gpu['driver_version']}" if "driver_version" in gpu else ""))
        lines += [f"under load: {clocks}"] if clocks else []
    versions = ", ".join(f"{name} {version}" for name, version in found.machine["versions"].items())
    rounds = f"medians of {found.rounds.rounds} interleaved rounds; no transfers counted"
    lines += [f"CPU: {found.machine['cpu']}", f"gpusq-onnx {__version__}, {versions}", rounds]
    return lines + ([f"x: times the speed of {found.reference}, paired by round"] if found.reference else [])


def columns(found: Benchmark) -> tuple[list[str], list[list[str]]]:
    """The table: its header and its rows."""
    times = ["latency, batch 1 (ms)" if n == 1 else f"throughput, batch {n} (images/s)" for n in found.batches]
    header = ["model", "format", "params (M)", "FLOPs (G)", *times, "x dense INT8", "spread"]
    return header, [_cells(row, found) for row in found.rows]


def _cells(row: BenchmarkRow, found: Benchmark) -> list[str]:
    cells = [row.model, row.format, f"{row.parameters:.3g}", f"{row.flops:.3g}"]
    cells += [_figure(row.cells[batch], batch) if batch in row.cells else "-" for batch in found.batches]
    last = row.cells[max(row.cells)]
    spread = max(cell.spread for cell in row.cells.values())
    return [*cells, "-" if last.against_int8 is None else f"{last.against_int8:.2f}", f"{spread:.1%}"]


def _figure(cell: Cell, batch: int) -> str:
    figure = f"{1e3 * cell.median:.3f}" if batch == 1 else f"{batch / cell.median:,.0f}"
    return figure if cell.against_reference is None else f"{figure} ({cell.against_reference:.2f}x)"


def require_chart(path: Path) -> None:
    """Refuse a chart that could not be drawn, before anything is timed.

    Raises:
        UsageError: a suffix that is no picture's.
        EnvironmentLacking: matplotlib is missing.
    """
    if path.suffix.lower() not in FORMATS:
        raise UsageError("the chart's file has no suffix of a picture", expected=" ".join(FORMATS), found=path.name)
    if not path.parent.is_dir():
        raise UsageError("the chart's folder does not exist", where=str(path.parent), hint="create it")
    if find_spec("matplotlib") is None:
        raise EnvironmentLacking("a chart needs matplotlib", hint="pip install 'gpusq-onnx[report]'")


def draw(found: Benchmark, path: Path) -> None:
    """Throughput of every row, a panel for each batch size, baselines set off; raises as `require_chart`."""
    require_chart(path)
    from matplotlib.figure import Figure

    batches = found.batches
    figure = Figure(figsize=(1.5 + 4.5 * len(batches), 1.2 + 0.35 * len(found.rows)), layout="constrained")
    panels: Any = figure.subplots(1, len(batches), sharey=True, squeeze=False)
    labels = [f"{row.model} {row.format}" for row in found.rows]
    colours = ["#2a7f3f" if row.given else "#9aa5b1" for row in found.rows]
    for panel, batch in zip(panels[0], batches, strict=True):
        speeds = [batch / row.cells[batch].median if batch in row.cells else 0.0 for row in found.rows]
        bars = panel.barh(labels, speeds, color=colours)
        panel.bar_label(bars, labels=[f"{speed:,.0f}" if speed else "-" for speed in speeds], padding=3)
        panel.set_xlabel(f"images/s, batch {batch}")
        panel.margins(x=0.18)
        panel.invert_yaxis()
    where = found.machine.get("gpu", {}).get("name") or found.machine["cpu"]
    figure.suptitle(f"{found.backend}, {where}")
    figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
