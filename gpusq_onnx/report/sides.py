"""The two models of a comparison, each loaded by what is to run it.

    .onnx                 onnxruntime on the CPU, Q and DQ executed as written; `on="cuda"`: its CUDA provider
    .plan .engine .trt    TensorRT
    .onnx, on="tensorrt"  an engine built on the spot, in which taps are outputs

What is asked for runs, or the error says what is missing: nothing falls back to the CPU.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

from gpusq_onnx.errors import UsageError
from gpusq_onnx.graph.io import load
from gpusq_onnx.pipeline.progress import Progress
from gpusq_onnx.report.tapping import choose, tapped
from gpusq_onnx.runtime.compare import Loaded
from gpusq_onnx.runtime.engine import SUFFIXES, Engine, built, require_tensorrt
from gpusq_onnx.runtime.ort import Session
from gpusq_onnx.runtime.taps import Tap

BATCH = 8  # of models with a free batch; also what an engine is built for

Runtime = Literal["cpu", "cuda", "tensorrt"]


def is_plan(path: Path) -> bool:
    """Whether a file is a TensorRT engine, by its name."""
    return path.suffix.lower() in SUFFIXES


@contextmanager
def opened(
    original: Path, compressed: Path, on: Runtime, wanted: Sequence[str], progress: Progress
) -> Iterator[tuple[Loaded, Loaded, list[Tap]]]:
    """Both models, loaded where they are to run, and the taps that both show.

    Args:
        on: what runs the compressed model where that is an ONNX file; the original runs on the CPU.
        wanted: see `report.tapping`.

    Raises:
        EnvironmentLacking: TensorRT, CUDA or a GPU is asked for and missing.
        UsageError: a missing file, or taps that the models cannot show.
    """
    plan = is_plan(compressed)
    if plan and on == "cuda":
        raise UsageError("an engine runs on TensorRT", where=str(compressed), found="--on cuda", hint="leave --on out")
    if plan or on == "tensorrt":
        require_tensorrt()
    taps: list[Tap] = []
    with ExitStack() as scratch:
        paths = [original, compressed]
        if wanted:
            models = [load(path) for path in (paths if not plan else paths[:1])]
            taps = choose(models[0], models[-1], wanted)
            paths[: len(models)] = scratch.enter_context(tapped(models, taps))
        reference = Session(paths[0], exact_qdq=True)
        if plan:
            candidate: Loaded = Engine.load(compressed)
            _require_outputs(candidate, taps)
        elif on == "tensorrt":
            progress.start("building an engine")
            candidate = built(paths[1], str(compressed), BATCH)
            progress.finish()
        else:
            provider = "CUDAExecutionProvider" if on == "cuda" else "CPUExecutionProvider"
            candidate = Session(paths[1], exact_qdq=True, provider=provider)
        for side, path in ((reference, original), (candidate, compressed)):
            side.name = str(path)  # a scratch copy's own name would tell the reader nothing
        yield reference, candidate, taps


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
