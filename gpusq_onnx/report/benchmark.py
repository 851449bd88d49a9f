"""The result of `bench`: models and their dense baselines, each with its cells by batch size, as data.

Ratios are paired by round (`runtime.bench.timing`): to the reference, TF32 where the device has it, else FP32; and to
dense INT8.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from gpusq_onnx import __version__
from gpusq_onnx.runtime.bench.timing import Rounds


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
    """One model in one format (see `workflows.baselines.TimedModel`), with its cells by batch size."""

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
    rows: tuple[BenchmarkRow, ...]
    notes: tuple[str, ...]
    choices: tuple[str, ...] = ()

    @property
    def batches(self) -> list[int]:
        """The batch sizes, smallest first."""
        return sorted({batch for row in self.rows for batch in row.cells})

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"tool": f"gpusq-onnx {__version__}", **asdict(self)}
