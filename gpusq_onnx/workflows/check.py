"""`check`: two models on the same data, gates on what comes out, and a TensorRT parser's verdict.

The reference arithmetic is Q and DQ executed as written; how the compressed model does in a session with onnxruntime's
defaults is reported too, and its refusal there is a failure whatever the gates.

A gate that cannot be measured (top-1 without labels, agreement of a detector) is a usage error, before the models run
where that can be known: a gate that never fails would be worse than none.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from onnx import ModelProto

from gpusq_onnx.data import remembered
from gpusq_onnx.data.opening import open_source
from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.source import Source
from gpusq_onnx.data.subset import held_out
from gpusq_onnx.errors import UsageError
from gpusq_onnx.files import Staging, into, write_text
from gpusq_onnx.graph import io
from gpusq_onnx.graph.blame import blaming
from gpusq_onnx.graph.id_ranges import table_rows
from gpusq_onnx.pipeline.doubts import doubts
from gpusq_onnx.progress import NullProgress, Progress
from gpusq_onnx.report.checking import CheckResult
from gpusq_onnx.report.compared_models import BATCH, Runtime, is_plan, opened
from gpusq_onnx.runtime.compare.artefacts import Recorder, continuation
from gpusq_onnx.runtime.compare.difference import OutputsMetric
from gpusq_onnx.runtime.compare.gates import Gates
from gpusq_onnx.runtime.compare.outputs import Comparison, compare
from gpusq_onnx.runtime.compare.taps import first_departure
from gpusq_onnx.runtime.tensorrt.parser import Verdict, parser_verdict
from gpusq_onnx.tasks.classification import Classification
from gpusq_onnx.tasks.detection import Detection
from gpusq_onnx.tasks.scored import SCORED
from gpusq_onnx.tasks.segmentation import Segmentation
from gpusq_onnx.wording import in_callers_words, worded
from gpusq_onnx.workflows import samples
from gpusq_onnx.workflows.models import AnyModel, as_file, name_of
from gpusq_onnx.workflows.places import PARSER_CACHE
from gpusq_onnx.workflows.samples import AnyData, AnyOptions
from gpusq_onnx.workflows.sizes import open_sizes

_FEWEST, _ENOUGH = 5, 16  # classes and samples, below which chance explains everything
_NEAR = 0.03
_BATCH_OF_ALL = 1  # every inner tensor of both models is in memory at once


@dataclass(frozen=True)
class CheckSettings:
    """How to compare.

    Attributes:
        on: what runs the compressed model; an engine file runs on TensorRT anyway. The original runs on the CPU.
        taps: "blocks", "all" or names of inner tensors; see `report.taps`.
        tolerance: the relative distance that a tap may have.
        artefacts: folder for Polygraphy's files, made where it is not there.
    """

    on: Runtime = "cpu"
    taps: tuple[str, ...] = ()
    tolerance: float = 0.1
    artefacts: Path | None = None


@dataclass(frozen=True)
class Parsing:
    """What is asked of a TensorRT parser.

    Attributes:
        build: an engine, too.
        shapes: `INPUT=SHAPE` texts for the build of a model that takes any size.
        cache: where the parser for machines without a GPU lives, 150 MB; filled on first use.
    """

    build: bool = False
    shapes: Sequence[str] = ()
    cache: Path = PARSER_CACHE


@worded
def check(
    original: AnyModel,
    compressed: AnyModel,
    *,
    data: AnyData = None,
    data_options: AnyOptions = None,
    gates: Gates | Mapping[str, float] | None = None,
    look: CheckSettings = CheckSettings(),
    parsing: Parsing | None = None,
    seed: int | None = None,
    progress: Progress = NullProgress(),  # noqa: B008 - it has no state
    results: Staging | None = None,
) -> CheckResult:
    """Compare two models on the same data.

    Args:
        original, compressed: paths or models in memory; `compressed` may be an engine's path.
        data, data_options: see `workflows.samples`; no data: synthetic images, which say little about accuracy.
        gates: bounds by name (see `runtime.compare.gates.Gates`), such as {"max_top1_drop": 1.0};
            `CheckResult.failures` has what is not met, and `CheckResult.require()` raises it.
        parsing: ask a TensorRT parser as well; its refusal is a failure.
        results: write artefacts there, and leave it to the caller to commit.

    Raises:
        UsageError: a missing file, or a gate or a tap that this data or these models cannot answer.
        UnsupportedModelError, UnsupportedDataError: see `runtime.compare.outputs.compare`.
        EnvironmentLacking: TensorRT, CUDA or a GPU is asked for and missing.
    """
    bounds = gates if isinstance(gates, Gates) else gates_of(gates or {})
    with as_file(original) as before, as_file(compressed) as after:
        if parsing is not None and is_plan(after):
            raise UsageError("--parser reads ONNX files", where=str(after), hint="give the ONNX file, or no --parser")
        with samples.opened(original, data, data_options, seed) as options:
            with blaming(*(path for path in (before, after) if not is_plan(path))):
                found = _compared(before, after, options, bounds, progress, look)
            if parsing is not None:
                found = found.with_verdict(_ask(after, parsing, options, progress))
    if look.artefacts:
        with into(results) as staging:
            for name, text in found.artefacts.items():
                write_text(look.artefacts / name, text, staging)
    in_memory = not isinstance(compressed, (str, os.PathLike))
    return replace(found, original=name_of(original), compressed=name_of(compressed), in_memory=in_memory)


def gates_of(bounds: Mapping[str, float]) -> Gates:
    """Gates by name. Raises UsageError for a name that there is not, or a bound out of its range."""
    known = list(Gates.__dataclass_fields__)
    unknown = [name for name in bounds if name not in known]
    if unknown:
        raise UsageError(f"there is no gate named {unknown[0]!r}", where="gates", expected=f"one of {', '.join(known)}")
    return Gates(**bounds)


def _compared(
    original: Path, compressed: Path, options: DataOptions, gates: Gates, progress: Progress, look: CheckSettings
) -> CheckResult:
    """Run both models on the data and judge the gates."""
    headers = [None if is_plan(path) else io.read_proto(path)[0] for path in (original, compressed)]
    settled = remembered.settle(options, [_metadata(header) for header in reversed(headers)], original.parent)
    options = settled.options
    with opened(original, compressed, look.on, look.taps, progress) as sides:
        reference, candidate, taps = sides.reference, sides.candidate, sides.taps
        framed = reference if reference.fixed_batch else candidate
        source = open_source(options, framed.inputs(), lambda: table_rows(io.load(original)))
        if options.hold_out is not None:
            source, _ = held_out(source, options.hold_out)
        _require_truth(gates, source)
        doubted = doubts(lambda: reference, source)
        own = {info.name for info in reference.outputs()} - {tap.name for tap in taps}
        runtime = "tensorrt" if is_plan(compressed) else look.on
        recorder = Recorder((f"onnxruntime {original.name}", f"{runtime} {compressed.name}"), own)
        progress.start("comparing", len(source))
        try:
            found = compare(
                reference,
                candidate,
                source,
                metric=Classification,
                judge=judge_of(source),
                batch=_BATCH_OF_ALL if "all" in look.taps else BATCH,
                taps=taps,
                default=sides.default,
                progress=progress.advance,
                on_batch=recorder if look.artefacts else _nobody,
            )
        finally:
            progress.finish()
    departure = first_departure(found.taps, look.tolerance)
    notes = [*in_callers_words((*settled.warnings, *source.notes, *(doubted or _suspicions(found, source))))]
    later: Sequence[str] = ()
    if look.artefacts:
        later = continuation(look.artefacts, original, compressed, engine=is_plan(compressed))
    return CheckResult(
        original=str(original),
        compressed=str(compressed),
        runtime=runtime,
        comparison=found,
        data={**settled.describe(source), "notes": notes},
        gates=gates,
        failures=(*gates.failures(found), *([sides.refusal] if sides.refusal else [])),
        tolerance=look.tolerance if taps else None,
        departure=departure.name if departure else None,
        artefacts=recorder.files() if look.artefacts else {},
        continuation=tuple(later),
        notes=sides.notes,
        taps=look.taps,
        sha256=(_digest(original, headers[0]), _digest(compressed, headers[1])),
    )


def _suspicions(found: Comparison, source: Source) -> list[str]:
    """What says that the images are not prepared as the original model wants them."""
    if source.kind == "synthetic" or found.classes is None or found.classes < _FEWEST or found.samples < _ENOUGH:
        return []
    chance = 1 / found.classes
    top1 = (found.reference_metrics or {}).get("top1")
    sure = found.reference_confidence
    if top1 is not None and top1 < 2 * chance + _NEAR:
        seen = f"the original model's top-1 is {top1:.1%}, and guessing gives {chance:.1%}"
        return [f"{seen}: the preprocessing is wrong, or the labels are those of other classes"]
    if sure is not None and sure < 2 * chance + _NEAR:
        seen = f"the original model is hardly sure of any image (mean confidence {sure:.1%})"
        return [f"{seen}: the preprocessing is wrong, or these are images of something else"]
    return []


def _metadata(header: ModelProto | None) -> dict[str, str]:
    """The model-level metadata of an ONNX file; an engine has none."""
    return {} if header is None else {entry.key: entry.value for entry in header.metadata_props}


def _digest(path: Path, header: ModelProto | None) -> str:
    """SHA-256 of a model and its external data, which is beside it."""
    tensors = () if header is None else header.graph.initializer
    names = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    return io.file_digest(path, sorted(path.parent / name for name in names))


def _ask(model: Path, parsing: Parsing, options: DataOptions, progress: Progress) -> Verdict:
    shapes = open_sizes(io.load(model).inputs(), parsing.shapes, options) if parsing.build else {}
    progress.start("building with TensorRT" if parsing.build else "parsing with TensorRT")
    try:
        return parser_verdict(model, harness=parsing.cache, build=parsing.build, shapes=shapes)
    finally:
        progress.finish()


def _nobody(*seen: object) -> None:
    pass


def _require_truth(gates: Gates, source: Source) -> None:
    """Raise UsageError for a gate on a metric that the data cannot give."""
    for metric in SCORED.values():
        if gates.ask_for(metric.key) and metric.key not in source.truths:
            raise UsageError(
                f"a gate on {metric.name} needs {metric.truth}, and the data has none",
                where=f"--min-{metric.option}, --max-{metric.option}-drop",
                hint=f"give {metric.given_by}",
            )


def judge_of(source: Source) -> Callable[[], OutputsMetric] | None:
    """The metric for what the images show, where that is no label."""
    if source.annotations is not None:
        return partial(Detection, source.annotations, source.input_size)
    return Segmentation if source.segmented else None
