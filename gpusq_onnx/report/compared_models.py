"""The two models of a comparison, each loaded by what is to run it.

    .onnx                 onnxruntime on the CPU, Q and DQ executed as written; `on="cuda"`: its CUDA provider
    .plan .engine .trt    TensorRT
    .onnx, on="tensorrt"  an engine built on the spot, in which taps are outputs

What is asked for runs, or the error says what is missing: nothing falls back to the CPU. A compressed ONNX file on the
CPU is opened a second time with onnxruntime's defaults, as its users will. Each file meets onnxruntime in a process of
its own first: one that ends it is compared in the form in which `apply` reads it (`graph.tidy`), one that no CPU kernel
runs in another way, which a note names (`graph.qdq.simulated`). Outputs that are no tensors of numbers (the sequence of
maps of a ZipMap, strings) are left out, and a note names them.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from onnx import TensorProto, ValueInfoProto

from gpusq_onnx.errors import UnsupportedModelError, UsageError
from gpusq_onnx.graph.io import load, read_proto, write_tapped
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.qdq.simulated import NOTES, runs_as, twin_of
from gpusq_onnx.pipeline.proof import require_survival
from gpusq_onnx.progress import Progress
from gpusq_onnx.report.taps import choose, tapped
from gpusq_onnx.runtime.compare.engine import SUFFIXES, Engine, built, require_tensorrt
from gpusq_onnx.runtime.compare.outputs import Loaded
from gpusq_onnx.runtime.compare.taps import Tap
from gpusq_onnx.runtime.ort import Session
from gpusq_onnx.runtime.trial import Trial, Trials
from gpusq_onnx.scratch import Scratch

BATCH = 8  # of models with a free batch; also what an engine is built for

Runtime = Literal["cpu", "cuda", "tensorrt"]


def is_plan(path: Path) -> bool:
    """Whether a file is a TensorRT engine, by its name."""
    return path.suffix.lower() in SUFFIXES


@dataclass(frozen=True)
class Sides:
    """The models of a comparison.

    Attributes:
        taps: inner tensors that both show.
        default: the compressed model with onnxruntime's defaults; None where it is refused, or runs elsewhere.
        refusal: what such a session said instead of loading it.
        notes: what else ran in place of the files.
    """

    reference: Loaded
    candidate: Loaded
    taps: list[Tap]
    default: Loaded | None = None
    refusal: str | None = None
    notes: tuple[str, ...] = ()


@contextmanager
def opened(original: Path, compressed: Path, on: Runtime, wanted: Sequence[str], progress: Progress) -> Iterator[Sides]:
    """Both models, loaded where they are to run.

    Args:
        on: what runs the compressed model where that is an ONNX file; the original runs on the CPU.
        wanted: see `report.taps`.

    Raises:
        EnvironmentLacking: TensorRT, CUDA or a GPU is asked for and missing.
        UsageError: a missing file, or taps that the models cannot show.
        UnsupportedModelError: a model ends onnxruntime's process in every form, or has no output that is a tensor of
            numbers.
    """
    plan = is_plan(compressed)
    if is_plan(original):
        raise UsageError(
            "an engine is compared with an ONNX file",
            where=str(original),
            hint="name the ONNX file first; two engines are two comparisons",
        )
    if plan and on == "cuda":
        raise UsageError("an engine runs on TensorRT", where=str(compressed), found="--on cuda", hint="leave --on out")
    if plan:
        require_tensorrt("compare the ONNX file that it was built from, on the CPU")
    elif on == "tensorrt":
        require_tensorrt()
    taps: list[Tap] = []
    default = refusal = None
    with ExitStack() as scratch:
        folder = scratch.enter_context(Scratch())
        trials = scratch.enter_context(Trials())
        tried = [_tried(original, folder, trials)]
        paths = [tried[0].path, compressed]
        if not plan and on == "cpu":
            tried.append(_tried(compressed, folder, trials))
            paths[1] = tried[1].path
        shown = [_with_numbers(path, folder) for path in paths[: 1 if plan else 2]]
        paths[: len(shown)] = [path for path, _ in shown]
        if len(tried) > 1:
            if tried[1].trial.outcome not in ("refused", "died"):
                own = paths[1] if tried[1].path == compressed else compressed
                default = Session(own, name=str(compressed))
            elif tried[1].note is None:
                refusal = str(tried[1].trial)
        said = (*(one.note for one in tried), *(note for _, note in shown))
        notes = tuple(dict.fromkeys(note for note in said if note is not None))
        if wanted:
            models = [load(path) for path in (paths if not plan else paths[:1])]
            taps = choose(models[0], models[-1], wanted)
            paths[: len(models)] = scratch.enter_context(tapped(models, taps))
        names = [str(original), str(compressed)]  # a scratch copy's own name would tell the reader nothing
        reference = Session(paths[0], name=names[0], exact_qdq=True)
        if plan:
            candidate: Loaded = Engine.load(compressed)
            _require_outputs(candidate, taps)
        elif on == "tensorrt":
            progress.start("building an engine")
            candidate = built(paths[1], str(compressed), BATCH)
            progress.finish()
        else:
            provider = "CUDAExecutionProvider" if on == "cuda" else "CPUExecutionProvider"
            candidate = Session(paths[1], name=names[1], exact_qdq=True, provider=provider)
        candidate.name = names[1]
        yield Sides(reference, candidate, taps, default, refusal, notes)


@dataclass(frozen=True)
class _Tried:
    """A file that runs, how a default session took the one that was given, and why it is no fault that it did not."""

    path: Path
    trial: Trial
    note: str | None = None


def _tried(path: Path, folder: Path, trials: Trials) -> _Tried:
    """The file; where it ends onnxruntime's process, what `apply` makes of it; where no kernel runs it, its twin."""
    (trial,) = trials.try_out(path, None, ["default"])
    if trial.outcome not in ("refused", "died"):
        return _Tried(path, trial)
    model = load(path)
    runs = runs_as(model)
    if trial.outcome == "died":
        require_survival(model, trials, None)
    elif runs != "twin":
        return _Tried(path, trial, NOTES.get(runs))
    written = _written(twin_of(model), folder, [spec.name for spec in model.outputs()])
    return _Tried(written, trial, NOTES.get(runs))


def _with_numbers(path: Path, folder: Path) -> tuple[Path, str | None]:
    """The file; where outputs are no tensors of numbers, a copy with the others, and a note that names them.

    Raises:
        UnsupportedModelError: no output is left.
    """
    outputs = read_proto(path)[0].graph.output
    others = [value.name for value in outputs if not _holds_numbers(value)]
    if not others:
        return path, None
    kept = [value.name for value in outputs if value.name not in others]
    if not kept:
        raise UnsupportedModelError(
            "the model has no output that can be compared",
            where=str(path),
            expected="an output that is a tensor of numbers",
            found=", ".join(others),
            hint="export the model without its last operators, such as ZipMap",
        )
    return _written(load(path), folder, kept), f"no tensors of numbers, and left out: {', '.join(others)}"


def _holds_numbers(value: ValueInfoProto) -> bool:
    """Whether an output is a tensor, and not of strings; true of one without a type, which onnxruntime infers."""
    kind = value.type.WhichOneof("value")
    return kind is None or (kind == "tensor_type" and value.type.tensor_type.elem_type != TensorProto.STRING)


def _written(model: Model, folder: Path, outputs: Sequence[str]) -> Path:
    path = folder / f"{len(list(folder.iterdir()))}.onnx"
    write_tapped(model, path, outputs)
    return path


def _require_outputs(candidate: Loaded, taps: list[Tap]) -> None:
    shown = {info.name for info in candidate.outputs()}
    missing = [tap.name for tap in taps if tap.name not in shown]
    if missing:
        raise UsageError(
            f"the engine does not show {missing[0]}: its inner tensors went into kernels",
            where=candidate.name,
            found=", ".join(sorted(shown)),
            hint="give the ONNX file with --on tensorrt, which builds an engine that shows the taps",
        )
