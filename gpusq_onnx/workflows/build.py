"""`build`: a TensorRT engine, what became of each weight in it, and a gate on its sparse kernels."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.errors import UsageError
from gpusq_onnx.files import Staging, require_apart, require_place, write_text
from gpusq_onnx.graph import io
from gpusq_onnx.graph.blame import blaming
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.pin import pin_specs
from gpusq_onnx.marks import first_line
from gpusq_onnx.progress import NullProgress, Progress
from gpusq_onnx.report.engine import EngineReport, make_report
from gpusq_onnx.report.inspection import inspect_model
from gpusq_onnx.report.sparse_gate import parse_gate
from gpusq_onnx.runtime.tensorrt import commands
from gpusq_onnx.runtime.tensorrt.engine import build_engine, card_of
from gpusq_onnx.runtime.tensorrt.library import find_library
from gpusq_onnx.runtime.tensorrt.options import BuildOptions
from gpusq_onnx.runtime.tensorrt.profiles import make_profiles, opens_batch, parse_batch, parse_shapes
from gpusq_onnx.wording import in_callers_words, worded
from gpusq_onnx.workflows.models import AnyModel, as_file
from gpusq_onnx.workflows.sizes import open_sizes

NO_BATCH = "no --batch: the engine takes batch 1 only, and sparse kernels seldom win there"


@dataclass(frozen=True)
class EngineOptions:
    """What the engine is to be.

    Attributes:
        batches: texts `MIN,OPT,MAX` or `N`: the batches it takes, tuned for OPT; a profile each.
        shapes: texts `INPUT:MIN,OPT,MAX`, all axes of one input.
        crop: side of the images in pixels, where any size goes.
        tf32, optimization_level, memory, hardware, version_compatible: see `runtime.tensorrt.options.BuildOptions`.
        rtx: TensorRT-RTX instead of TensorRT.
    """

    batches: Sequence[str] = ()
    shapes: Sequence[str] = ()
    crop: int | None = None
    tf32: bool = True
    optimization_level: int = 3
    memory: Mapping[str, int] = field(default_factory=dict)
    hardware: str = "none"
    version_compatible: bool = False
    rtx: bool = False

    def for_model(self, model: Model) -> BuildOptions:
        """As the builder takes them. Raises UsageError for what cannot be read or does not fit the model."""
        batches = [parse_batch(text) for text in self.batches]
        inputs = model.inputs()
        shapes = dict(map(parse_shapes, self.shapes))
        if self.crop is not None:
            sizes = open_sizes(inputs, self.shapes, DataOptions.from_values({"crop": self.crop}, where="--crop"))
            inputs = pin_specs(inputs, {name: size for name, size in sizes.items() if name not in shapes})
        return BuildOptions(
            profiles=make_profiles(inputs, batches, shapes),
            tf32=self.tf32,
            optimization_level=self.optimization_level,
            memory=self.memory,
            hardware=self.hardware,
            version_compatible=self.version_compatible,
            rtx=self.rtx,
        )


@worded
def build(
    model: AnyModel,
    output: str | os.PathLike[str],
    engine: EngineOptions = EngineOptions(),
    *,
    cpu_harness: Path | None = None,
    cache: Path | None = None,
    min_sparse_chosen: str | None = None,
    log: Path | None = None,
    progress: Progress = NullProgress(),  # noqa: B008 - it has no state
    warn: Callable[[str], None] = lambda text: None,
    results: Staging | None = None,
) -> EngineReport:
    """Build an engine and put what TensorRT made of each weight beside what was predicted.

    Args:
        output: the engine; its card goes beside it as `OUTPUT.json`.
        cpu_harness: folder of the builder for machines without a GPU: proves that it builds, and deploys nothing.
        cache: keep engines and kernel timings there, and reuse them.
        min_sparse_chosen: gate, `10` layers or `80%` of the eligible ones; see `EngineReport.failures`.
        log: write the builder's log there.
        warn: gets what a user should know before the build, which takes minutes.
        results: write engine and card there, and leave it to the caller to commit; the log is there however it ends.

    Raises:
        UsageError: an option that cannot be read or does not fit the model, or an engine that would overwrite it.
        EnvironmentLacking: TensorRT or a GPU is missing.
        UnsupportedModelError: the model cannot be used, or the builder refuses it.
    """
    plan = Path(output)
    gate = parse_gate(min_sparse_chosen) if min_sparse_chosen else None
    if gate and cpu_harness:
        raise UsageError(
            "--min-sparse-chosen cannot be judged without a GPU",
            where="--cpu-harness",
            hint="leave one of them out; gpusq-onnx inspect predicts the kernels",
        )
    with as_file(model) as path, blaming(path):
        require_apart(plan, [path], "the engine would overwrite the model")
        require_place(plan, "the engine")
        if log:
            require_place(log, "the builder's log")
        graph = io.load(path)
        options = engine.for_model(graph)
        sha256 = io.file_digest(path, io.data_files(graph))
        open_inputs = [spec.name for spec in graph.inputs() if not all(isinstance(size, int) for size in spec.shape)]
        progress.start("starting TensorRT")
        library = find_library(rtx=engine.rtx, harness=cpu_harness)
        if opens_batch(graph.inputs()) and not engine.batches and not engine.shapes:
            warn(NO_BATCH)
        if not library.deployable:
            warn(f"{library.name} builds without a GPU: the engine is NOT FOR DEPLOYMENT")
        progress.start(f"building with {library.name}")
        place = plan if results is None else results.place(plan, last=True)
        if results is not None:
            results.place(card_of(plan))
        built = replace(build_engine(path, sha256, place, options, library, cache=cache), plan=plan)
        if log:
            write_text(log, first_line("what the builder said") + "\n".join(built.log) + "\n")
        built.require(path)
        inspection = inspect_model(graph, progress)
        lines = {
            "trtexec": commands.trtexec(path, plan, options, dynamic=open_inputs, major=library.major),
            "polygraphy": commands.polygraphy(path, plan, options),
        }
        open_batch = opens_batch(graph.inputs())
        found = make_report(path, sha256, inspection, built, library, options, lines, open_batch=open_batch)
    judged = gate.judge(found) if gate else found
    return replace(judged, failures=in_callers_words(judged.failures))
