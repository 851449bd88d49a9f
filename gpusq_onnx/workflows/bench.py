"""`bench`: models and their dense baselines in one runtime, all rows of a batch size in the same rounds.

A model that was given and cannot run is an error; a baseline that cannot is a note.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.errors import EnvironmentLacking, GpusqError, UsageError
from gpusq_onnx.graph.blame import blaming
from gpusq_onnx.pipeline.grammar import did_you_mean
from gpusq_onnx.progress import NullProgress, Progress
from gpusq_onnx.report.benchmark import Benchmark, BenchmarkRow, Cell
from gpusq_onnx.runtime.bench.backend import Backend
from gpusq_onnx.runtime.bench.timing import Rounds, Timing, time_side_by_side
from gpusq_onnx.runtime.machine import cpu_name, read_gpu
from gpusq_onnx.scratch import Scratch, naming
from gpusq_onnx.wording import worded
from gpusq_onnx.workflows.baselines import Pin, TimedModel, at_size, baseline_entries, given_entry
from gpusq_onnx.workflows.counts import require_counts
from gpusq_onnx.workflows.models import AnyModel, as_file
from gpusq_onnx.workflows.places import CACHE
from gpusq_onnx.workflows.sizes import open_sizes

Runtime = Literal["tensorrt", "onnxruntime", "onnxruntime-cuda", "torch", "torch-cpu"]


@worded
def bench(
    models: AnyModel | Sequence[AnyModel],
    *,
    backend: Runtime | Backend = "tensorrt",
    batches: Sequence[int] = (1, 32, 256),
    rounds: int = 20,
    crop: int | None = None,
    shapes: Sequence[str] = (),
    cache: Path = CACHE,
    progress: Progress = NullProgress(),  # noqa: B008 - it has no state
) -> Benchmark:
    """Time models side by side, beside dense FP32, TF32, FP16 and INT8 of the same runtime.

    Args:
        backend: what runs them: a name, or a backend of the caller's.
        batches: batch sizes; 1 gives a latency, others a throughput.
        rounds: interleaved rounds; medians are reported.
        crop, shapes: the images' side, or `INPUT=SHAPE` texts, for models that take any size.
        cache: where engines and searched kernels are kept.

    Raises:
        EnvironmentLacking: the backend, or the GPU, is not there.
        UsageError: no model, a missing file, or one named twice; no round; a batch that a model does not take.
        UnsupportedModelError: a given model that the backend cannot run.
    """
    given = models if isinstance(models, Sequence) and not isinstance(models, str) else [models]
    require_counts(models=len(given), rounds=rounds, batches=min(batches, default=0))
    options = DataOptions.from_values({} if crop is None else {"crop": crop}, where="--crop")
    runtime = open_backend(backend, cache) if isinstance(backend, str) else backend
    with ExitStack() as stack:
        paths = [stack.enter_context(as_file(model)) for model in given]
        sizes = partial(open_sizes, shapes=shapes, options=options)
        return run_benchmark(paths, runtime, batches, Rounds(rounds), progress, sizes)


def open_backend(name: Runtime, cache: Path = CACHE) -> Backend:
    """A backend by its name. Raises UsageError for one that there is not."""
    if name in ("onnxruntime", "onnxruntime-cuda"):
        from gpusq_onnx.runtime.bench.ort import OrtBackend

        return OrtBackend(gpu=name == "onnxruntime-cuda")
    if name == "tensorrt":
        from gpusq_onnx.runtime.bench.tensorrt import TrtBackend

        return TrtBackend(cache)
    if name in ("torch", "torch-cpu"):
        if find_spec("torch") is None:
            what = f"the backend {name} needs torch, which is not installed"
            raise EnvironmentLacking(what, hint="pip install 'gpusq-onnx[train]', or take another --backend")
        from gpusq_onnx.torchgraph.lowering.backend import TorchBackend

        return TorchBackend("cpu" if name == "torch-cpu" else "cuda", cache)
    known = get_args(Runtime)
    raise UsageError(
        f"there is no backend named {name!r}", expected=f"one of {', '.join(known)}", hint=did_you_mean(name, known)
    )


def run_benchmark(
    models: Sequence[Path],
    backend: Backend,
    batches: Sequence[int],
    rounds: Rounds = Rounds(),  # noqa: B008 - it is frozen
    progress: Progress = NullProgress(),  # noqa: B008 - it has no state
    sizes: Pin | None = None,
) -> Benchmark:
    """The same of files, on a backend that is open.

    Args:
        sizes: shapes for the inputs of a model that leaves more than the batch open (see `graph.pin`).
    """
    if len({path.resolve() for path in models}) < len(models):
        raise UsageError("a model is named twice", found=", ".join(map(str, models)))
    versions = backend.require()
    notes: list[str] = []
    with Scratch() as scratch:
        files = [at_size(path, scratch / str(i), sizes) if sizes else path for i, path in enumerate(models)]
        entries = []
        for path, file in zip(models, files, strict=True):
            with blaming(file), naming(str(path)):
                entries.append(given_entry(file))
        entries += list(baseline_entries(entries, backend, scratch, notes, progress))
        formats = {entry.format for entry in entries}
        reference = next((name for name in ("TF32", "FP32") if name in formats), "")
        rows = [BenchmarkRow(e.model, e.format, e.given, e.parameters, e.flops, {}) for e in entries]
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
    entries: Sequence[TimedModel], backend: Backend, batch: int, rounds: Rounds, notes: list[str], progress: Progress
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


def _cells(entries: Sequence[TimedModel], timings: dict[int, Timing], reference: str) -> dict[int, Cell]:
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
