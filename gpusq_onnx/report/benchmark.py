"""The result of `bench`: models and their dense baselines, each with its cells by batch size; as data, text and chart.

Ratios are paired by round (`runtime.bench.timing`): to the reference, TF32 where the device has it, else FP32; and to
dense INT8. The Markdown is in the form of the paper's Table 2, readable as plain text: latency is the time of a batch
of one, throughput is batch / time, and brackets hold how many times the reference's speed it is. The chart needs
matplotlib (extra `report`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpusq_onnx.errors import EnvironmentLacking, UsageError
from gpusq_onnx.files import Staging, into
from gpusq_onnx.marks import AUTHOR, of_picture
from gpusq_onnx.report.sheet import Grid, Heading, Item, Part, markdown
from gpusq_onnx.runtime.bench.timing import Rounds

FORMATS = (".png", ".svg", ".pdf")  # of the chart


@dataclass(frozen=True)
class Cell:
    """One row at one batch size; seconds a batch.

    Attributes:
        median, first_quartile, third_quartile: over rounds.
        executions: in each round's sample.
        against_reference, against_int8: speed in units of those rows'; None where there is no such row.
        samples: every round's.
    """

    median: float
    first_quartile: float
    third_quartile: float
    executions: int
    against_reference: float | None
    against_int8: float | None
    samples: tuple[float, ...]

    @property
    def spread(self) -> float:
        """(q3 - q1) / median."""
        return (self.third_quartile - self.first_quartile) / self.median


@dataclass(frozen=True)
class BenchmarkRow:
    """One model in one format; see `workflows.baselines.TimedModel`.

    Attributes:
        model: its name.
        format: of its weights.
        given: by the caller; if not, a baseline made of one.
        parameters, flops: in millions and in 10⁹, bit-weighted.
        cells: by batch size.
    """

    model: str
    format: str
    given: bool
    parameters: float
    flops: float
    cells: dict[int, Cell]


@dataclass(frozen=True)
class Benchmark:
    """What `bench` found.

    Attributes:
        backend: what ran the models.
        machine: GPU with its clocks under load, CPU, versions.
        reference: the format that ratios refer to.
        notes: what could not be made or run, and what the backend has to say.
        choices: which kernel serves what, where the backend chose.
    """

    backend: str
    machine: dict[str, Any]
    rounds: Rounds
    reference: str
    rows: tuple[BenchmarkRow, ...]
    notes: tuple[str, ...]
    choices: tuple[str, ...] = ()

    @property
    def batches(self) -> list[int]:
        """The batch sizes, smallest first."""
        return sorted({batch for row in self.rows for batch in row.cells})

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"tool": AUTHOR, **asdict(self)}


def sheet(found: Benchmark) -> list[Part]:
    """In words: the table, what it was timed on, and the kernels that serve."""
    names = dict.fromkeys(row.model for row in found.rows if row.given)
    parts: list[Part] = [Heading(f"{', '.join(names)}: timed on {found.backend}"), Grid(*columns(found))]
    parts += [Item(line) for line in machine(found)]
    parts += [Item(f"note: {note}") for note in found.notes]
    return parts + ([Heading("What serves", 2), *map(Item, found.choices)] if found.choices else [])


def digest(found: Benchmark) -> str:
    """The sheet as Markdown."""
    return markdown(sheet(found))


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
    lines += [f"CPU: {found.machine['cpu']}", f"{AUTHOR}, {versions}", rounds]
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


def draw(found: Benchmark, path: Path, results: Staging | None = None) -> None:
    """Throughput of every row, a panel for each batch size, baselines set off; raises as `require_chart`.

    Args:
        results: draw into them; None: the chart is at its place, whole, when this returns.
    """
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
    with into(results) as staging:
        figure.savefig(staging.place(path), dpi=120, metadata=of_picture(path.suffix.lower()))
