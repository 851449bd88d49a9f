"""What a benchmark asks of a runtime: its name and versions, and a runner for a model file at a batch size.

A `Variant` is one row to be: a model file and how to run it. What cannot be run raises; nothing here goes to a CPU in
silence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.errors import GpusqError, UnsupportedModelError, UsageError
from gpusq_onnx.runtime.bench.timing import Runner
from gpusq_onnx.runtime.ort import TensorInfo


@dataclass(frozen=True)
class Variant:
    """One way to run one model.

    Attributes:
        path: the ONNX file.
        precision: "as is", what the file says; "FP32" and "TF32", FP32 tensors with and without TF32 in products; a
            backend may offer others by name.
        sparse: whether sparse kernels may be used.
    """

    path: Path
    precision: str = "as is"
    sparse: bool = False


@dataclass(frozen=True)
class Baseline:
    """A dense format that a backend can be timed in beside the models that were given.

    Attributes:
        format: its name in the table.
        source: the file it is made from: "float", the float model; "half", that through `fp16`; "int8", through
            `qdq-int8`; "int8-half", through both.
        precision: see `Variant`.
    """

    format: str
    source: Literal["float", "half", "int8", "int8-half"]
    precision: str = "as is"


CPU_BASELINES = (Baseline("FP32", "float"), Baseline("FP16", "half"), Baseline("INT8", "int8"))
GPU_BASELINES = (
    Baseline("FP32", "float", "FP32"),
    Baseline("TF32", "float", "TF32"),
    Baseline("FP16", "half"),
    Baseline("INT8", "int8-half"),
)


class Backend(Protocol):
    """A runtime on a device; `gpu`: an NVIDIA one, whose clocks are reported beside the figures."""

    name: str
    gpu: bool
    baselines: Sequence[Baseline]

    def require(self) -> dict[str, str]:
        """Versions of what runs. Raises EnvironmentLacking where it cannot, with what to install."""

    def open(self, variant: Variant, batch: int) -> Runner:
        """A runner with its inputs in place; raises where it cannot be made, with the reason."""

    def notes(self) -> list[str]:
        """What a reader of the figures must know, found out while opening runners."""

    def choices(self) -> list[str]:
        """Which kernel serves what, one sentence each, where the backend chose itself."""


def random_feed(inputs: Sequence[TensorInfo], batch: int, name: str) -> dict[str, NDArray[Any]]:
    """Random inputs of the model's types and shapes for a batch; the same arrays for the same model.

        floats      normal; never zeros: products of zeros draw less power and run faster
        bytes       1 to 100: pixels, codes
        integers    rows of the table that they choose from (token ids); where they choose from none, 1: a mask that
                    keeps everything

    Args:
        name: of the model's file, which is read where there are integers.

    Raises:
        UsageError: the model has fixed another batch size.
        UnsupportedModelError: a dimension besides the batch is not fixed.
    """
    random = np.random.default_rng(0)
    free = any(info.shape and not isinstance(info.shape[0], int) for info in inputs)
    rows = _table_rows(name) if any(map(_is_integer, inputs)) else {}
    return {info.name: _random(info, _shape(info, batch, name, free), random, rows) for info in inputs}


def _is_integer(info: TensorInfo) -> bool:
    return info.dtype.kind in "iu" and info.dtype.itemsize > 1


def _table_rows(name: str) -> dict[str, int]:
    """See `graph.id_ranges`; none for a file that only a runtime can read."""
    from gpusq_onnx.graph import id_ranges, io  # a trial's process has no onnx until a model has integers

    try:
        return id_ranges.table_rows(io.load(name))
    except GpusqError:
        return {}


def _shape(info: TensorInfo, batch: int, name: str, free: bool) -> tuple[int, ...]:
    if not info.shape:
        return ()
    first, *rest = info.shape
    if isinstance(first, int) and free:
        batch = first  # other inputs carry the batch
    if isinstance(first, int) and first != batch:
        raise UsageError(
            f"the model takes batches of {first} only",
            where=f"{name}, input {info.name}",
            found=f"--batch {batch}",
            hint="export it with a dynamic batch, or give its own batch",
        )
    for size in rest:
        if not isinstance(size, int):
            raise UnsupportedModelError(
                f"input {info.name} has a dynamic dimension besides the batch",
                where=name,
                found=str(list(info.shape)),
                hint="export it at the size that you deploy",
            )
    return (batch, *(size for size in rest if isinstance(size, int)))


def _random(
    info: TensorInfo, shape: tuple[int, ...], random: np.random.Generator, rows: Mapping[str, int]
) -> NDArray[Any]:
    if info.dtype.kind == "f":
        return random.standard_normal(shape, np.float32).astype(info.dtype)
    if info.dtype.kind == "b":
        return random.integers(0, 2, shape).astype(info.dtype)
    if not _is_integer(info):
        return random.integers(1, 100, shape, endpoint=True).astype(info.dtype)
    if info.name in rows:
        return random.integers(0, rows[info.name], shape).astype(info.dtype)
    return np.ones(shape, info.dtype)
