"""A benchmark: given models and their dense baselines in one runtime, all rows of a batch size in the same rounds.

Ratios are paired by round (`runtime.timing`): to the reference, TF32 where the device has it, else FP32; and to dense
INT8. A model that was given and cannot run is an error; a baseline that cannot is a note.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gpusq_onnx import __version__
from gpusq_onnx.errors import GpusqError, UsageError
from gpusq_onnx.files import Scratch
from gpusq_onnx.pipeline.progress import NullProgress, Progress
from gpusq_onnx.report.baselines import Entry, Pin, at_size, baseline_entries, given_entry
from gpusq_onnx.runtime.backend import Backend
from gpusq_onnx.runtime.machine import cpu_name, read_gpu
from gpusq_onnx.runtime.timing import Rounds, Timing, time_side_by_side


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
class Row:
    """One model in one format (see `baselines.Entry`), with its cells by batch size."""

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
        machine: GPU with its clocks under load, CPU, versions.
        reference: the format that ratios refer to.
        notes: what could not be made or run, and what the backend has to say.
        choices: which kernel serves what, where the backend chose.
    """

    backend: str
    machine: dict[str, Any]
    rounds: Rounds
    reference: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    choices: tuple[str, ...] = ()

    @property
    def batches(self) -> list[int]:
        """The batch sizes, smallest first."""
        return sorted({batch for row in self.rows for batch in row.cells})

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"tool": f"gpusq-onnx {__version__}", **asdict(self)}


def run_benchmark(
    models: Sequence[Path],
    backend: Backend,
    batches: Sequence[int],
    rounds: Rounds = Rounds(),  # noqa: B008 - it is frozen
    progress: Progress = NullProgress(),  # noqa: B008 - it has no state
    sizes: Pin | None = None,
) -> Benchmark:
    """Time the models and their baselines.

    Args:
        sizes: shapes for the inputs of a model that leaves more than the batch open (see `graph.pin`).

    Raises:
        EnvironmentLacking: the backend, or the GPU, is not there.
        UsageError: a missing file, or one named twice; a batch that a model does not take.
        UnsupportedModelError: a given model that the backend cannot run.
    """
    if len({path.resolve() for path in models}) < len(models):
        raise UsageError("a model is named twice", found=", ".join(map(str, models)))
    versions = backend.require()
    notes: list[str] = []
    with Scratch() as scratch:
        files = [at_size(path, scratch / str(i), sizes) if sizes else path for i, path in enumerate(models)]
        entries = [given_entry(path) for path in files]
        entries += list(baseline_entries(entries, backend, scratch, notes, progress))
        formats = {entry.format for entry in entries}
        reference = next((name for name in ("TF32", "FP32") if name in formats), "")
        rows = [Row(e.model, e.format, e.given, e.parameters, e.flops, {}) for e in entries]
        gpu = None
        for batch in sorted(set(batches)):
            timings = _time(entries, backend, batch, rounds, notes, progress)
            gpu = read_gpu() if backend.gpu else None  # right after the work: the clocks are those under load
            cells = _cells(entries, timings, reference)
            rows = [replace(row, cells={**row.cells, **_at(batch, cells.get(i))}) for i, row in enumerate(rows)]
    machine: dict[str, Any] = {"cpu": cpu_name(), "versions": versions}
    if backend.gpu:
        machine = {"gpu": dict(gpu.facts) if gpu else {"name": "nvidia-smi does not answer"}, **machine}
    timed = tuple(row for row in rows if row.cells)
    reported = (*notes, *backend.notes()), tuple(backend.choices())
    return Benchmark(backend.name, machine, rounds, reference, timed, *reported)


def _time(
    entries: Sequence[Entry], backend: Backend, batch: int, rounds: Rounds, notes: list[str], progress: Progress
) -> dict[int, Timing]:
    """Timings by the entry's place."""
    runners = {}
    try:
        for place, entry in enumerate(entries):
            progress.start(f"opening {entry.model} {entry.format}, batch {batch}")
            try:
                runners[place] = backend.open(entry.variant, batch)
            except GpusqError as error:
                if entry.given:
                    raise
                notes.append(f"no dense {entry.format} at batch {batch}: {error.what}")
        found = time_side_by_side({str(place): runner for place, runner in runners.items()}, rounds, progress)
    finally:
        progress.finish()
        for runner in runners.values():
            runner.close()
    return {int(place): timing for place, timing in found.items()}


def _cells(entries: Sequence[Entry], timings: dict[int, Timing], reference: str) -> dict[int, Cell]:
    def row(name: str) -> Timing | None:
        return next((timing for place, timing in timings.items() if entries[place].format == name), None)

    base, int8 = row(reference), row("INT8")
    return {
        place: Cell(
            timing.median,
            *timing.quartiles,
            timing.executions,
            timing.faster_than(base) if base else None,
            timing.faster_than(int8) if int8 else None,
            timing.samples,
        )
        for place, timing in timings.items()
    }


def _at(batch: int, cell: Cell | None) -> dict[int, Cell]:
    return {} if cell is None else {batch: cell}
