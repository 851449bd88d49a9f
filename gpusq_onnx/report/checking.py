"""The result of `check`: a comparison, the gates that were set, and a TensorRT parser's verdict, as data.

The reference arithmetic is Q and DQ executed as written; how the compressed model does in a session with onnxruntime's
defaults is reported too, and its refusal there is a failure whatever the gates.

A gate that cannot be measured (top-1 without labels, agreement of a detector) is a usage error, before the models run
where that can be known: a gate that never fails would be worse than none.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.source import Source, open_source
from gpusq_onnx.errors import UsageError
from gpusq_onnx.pipeline.progress import Progress
from gpusq_onnx.report.markdown import assemble, table
from gpusq_onnx.report.sides import BATCH, Runtime, is_plan, opened
from gpusq_onnx.runtime.artefacts import Recorder, continuation
from gpusq_onnx.runtime.compare import Comparison, compare
from gpusq_onnx.runtime.difference import OutputsMetric
from gpusq_onnx.runtime.gates import Gates
from gpusq_onnx.runtime.parser import Verdict
from gpusq_onnx.runtime.taps import TapDifference, first_departure
from gpusq_onnx.tasks.classification import Classification
from gpusq_onnx.tasks.detection import Detection
from gpusq_onnx.tasks.segmentation import Segmentation

METRICS = {
    "top1": "top-1", "top5": "top-5", "AP": "AP", "AP50": "AP50", "AP75": "AP75",
    "mask_AP": "mask AP", "mask_AP50": "mask AP50", "mask_AP75": "mask AP75",
    "mIoU": "mean IoU", "aAcc": "pixel accuracy",
}  # fmt: skip
"""Names of what the tasks' metrics measure, by their keys."""
TRUTHS = {
    "top1": ("labels", "--classes FILE (line i names the folder of class i), or an .npz with an array named labels"),
    "AP": ("boxes", "--annotations FILE.json (COCO) with a folder of images"),
    "mask_AP": ("outlines", "--annotations FILE.json (COCO) with a folder of images"),
    "mIoU": ("label maps", "--masks FOLDER (NAME.png for NAME.jpg) with a folder of images"),
}
"""What the metrics that have gates need, and the options that name it."""

_BATCH_OF_ALL = 1  # every inner tensor of both models is in memory at once
_RUNTIMES = {"cuda": "onnxruntime's CUDA provider", "tensorrt": "TensorRT"}
_ROWS = 24  # of taps in the digest; of more, those around the departure


@dataclass(frozen=True)
class Look:
    """How to compare.

    Attributes:
        on: what runs the compressed model; an engine file runs on TensorRT anyway. The original runs on the CPU.
        taps: "blocks", "all" or names of inner tensors; see `report.tapping`.
        tolerance: the relative distance that a tap may have.
        artefacts: folder for Polygraphy's files, which must exist.
    """

    on: Runtime = "cpu"
    taps: tuple[str, ...] = ()
    tolerance: float = 0.1
    artefacts: Path | None = None


@dataclass(frozen=True)
class CheckResult:
    """What `check` found.

    Attributes:
        runtime: what ran the compressed model.
        tolerance: of the taps; None where there are none.
        departure: the first tap in graph order that leaves the tolerance.
        artefacts: texts of Polygraphy's files by their names.
        continuation: commands that go on from them.
    """

    original: str
    compressed: str
    runtime: str
    comparison: Comparison
    data: dict[str, Any]
    gates: Gates
    failures: tuple[str, ...]
    tolerance: float | None = None
    departure: str | None = None
    artefacts: Mapping[str, str] = field(default_factory=dict)
    continuation: tuple[str, ...] = ()
    parser: Verdict | None = None

    def with_verdict(self, verdict: Verdict) -> "CheckResult":
        """The same with the parser's verdict, which is a gate too."""
        refusal = () if verdict.ok else (f"{verdict.library} refuses the model: {verdict.errors[0]}",)
        return replace(self, parser=verdict, failures=(*self.failures, *refusal))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        values = asdict(replace(self, artefacts={}))
        return {**values, "artefacts": sorted(self.artefacts), "passed": not self.failures}


def check_models(
    original: Path, compressed: Path, options: DataOptions, gates: Gates, progress: Progress, look: Look = Look()
) -> CheckResult:
    """Run both models on the data and judge the gates.

    Raises:
        UsageError: a missing file, or a gate or a tap that this data or these models cannot answer.
        UnsupportedModelError, UnsupportedDataError: see `runtime.compare.compare`.
        EnvironmentLacking: TensorRT, CUDA or a GPU is asked for and missing.
    """
    with opened(original, compressed, look.on, look.taps, progress) as sides:
        reference, candidate, taps = sides.reference, sides.candidate, sides.taps
        framed = reference if reference.fixed_batch else candidate
        source = open_source(options, framed.inputs())
        _require_truth(gates, source)
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
                judge=_judge(source),
                batch=_BATCH_OF_ALL if "all" in look.taps else BATCH,
                taps=taps,
                default=sides.default,
                progress=progress.advance,
                on_batch=recorder if look.artefacts else _nobody,
            )
        finally:
            progress.finish()
    departure = first_departure(found.taps, look.tolerance)
    return CheckResult(
        str(original),
        str(compressed),
        runtime,
        found,
        {"options": options.echo(), **source.describe(), "sha256": source.digest()},
        gates,
        (*gates.failures(found), *([sides.refusal] if sides.refusal else [])),
        look.tolerance if taps else None,
        departure.name if departure else None,
        recorder.files() if look.artefacts else {},
        tuple(continuation(look.artefacts, original, compressed, engine=is_plan(compressed))) if look.artefacts else (),
    )


def summary(found: Comparison) -> str:
    """A comparison in half a line: the lowest of the outputs' mean cosines, and agreement where there are classes."""
    cosines = [output.cosine_mean for output in found.outputs if output.cosine_mean is not None]
    parts = [f"cosine {min(cosines):.4g}"] if cosines else []
    parts += [] if found.top1_agreement is None else [f"top-1 agreement {found.top1_agreement:.2%}"]
    after = found.candidate_metrics or {}
    parts += [f"{name} {after[key]:.2%}" for key, name in METRICS.items() if key in after]
    return ", ".join(parts) or "nothing to compare"


def _nobody(*seen: object) -> None:
    pass


def _require_truth(gates: Gates, source: Source) -> None:
    """Raise UsageError for a gate on a metric that the data cannot give."""
    boxes = source.annotations is not None
    known = {"top1": source.labelled, "AP": boxes, "mask_AP": boxes, "mIoU": source.segmented}
    for metric, (truth, hint) in TRUTHS.items():
        if gates.ask_for(metric) and not known[metric]:
            name, option = METRICS[metric], metric.lower().replace("_", "-")
            raise UsageError(
                f"a gate on {name} needs {truth}, and the data has none",
                where=f"--min-{option}, --max-{option}-drop",
                hint=f"give {hint}",
            )


def _judge(source: Source) -> Callable[[], OutputsMetric] | None:
    """The metric for what the images show, where that is no label."""
    if source.annotations is not None:
        return partial(Detection, source.annotations, source.input_size)
    return Segmentation if source.segmented else None


def digest(result: CheckResult) -> str:
    """The result as Markdown, readable as plain text."""
    found = result.comparison
    lines = [f"# {result.compressed} against {result.original}", ""]
    where = "" if result.runtime == "cpu" else f", compressed on {_RUNTIMES[result.runtime]}"
    lines += [f"{found.samples} samples of {result.data['kind']}{where}", ""]
    rows = [
        [o.name, _number(o.cosine_mean), _number(o.cosine_min), _number(o.max_abs), _number(o.mean_relative)]
        for o in found.outputs
    ]
    lines += table(["output", "cosine", "lowest cosine", "max difference", "mean difference / range"], rows)
    if found.top1_agreement is not None:
        more = "" if found.top5_agreement is None else f", top-5 {found.top5_agreement:.2%}"
        lines += ["", f"agreement: top-1 {found.top1_agreement:.2%}{more}"]
    if found.reference_metrics and found.candidate_metrics:
        before, after = found.reference_metrics, found.candidate_metrics
        lines += [f"{name}: {before[key]:.2%} -> {after[key]:.2%}" for key, name in METRICS.items() if key in before]
    if found.default is not None:
        lines += ["", f"with onnxruntime's defaults, where Q/DQ are fused: {summary(found.default)}"]
    lines += _taps(result)
    if result.parser:
        built = ", engine built" if result.parser.built else ""
        verdict = "accepted" if result.parser.ok else "refused"
        lines += ["", f"parser: {result.parser.library}: {verdict}{built}", *(f"- {e}" for e in result.parser.errors)]
    asked = [f"{name} = {value:g}" for name, value in asdict(result.gates).items() if value is not None]
    if asked or result.failures:
        lines += ["", f"gates: {', '.join(asked) or 'none'}: {'NOT MET' if result.failures else 'met'}"]
        lines += [f"- {failure}" for failure in result.failures]
    if result.continuation:
        lines += ["", "go on from here with Polygraphy:", "", *(f"    {command}" for command in result.continuation)]
    return assemble(lines)


def _taps(result: CheckResult) -> list[str]:
    """The taps around the first that leaves the tolerance, or all where they are few."""
    taps, names = result.comparison.taps, [tap.name for tap in result.comparison.taps]
    if not taps:
        return []
    middle = names.index(result.departure) if result.departure else len(taps)
    start = max(0, min(middle - _ROWS // 2, len(taps) - _ROWS))
    rows = [_tap(tap, result) for tap in taps[start : start + _ROWS]]
    shown = f", {len(rows)} of them" if len(rows) < len(taps) else ""
    verdict = f"{result.departure} is the first of them to leave it" if result.departure else "none leaves it"
    lines = ["", f"{len(taps)} inner tensors in graph order{shown}; tolerance {result.tolerance:g}: {verdict}", ""]
    return [*lines, *table(["tensor", "distance", "up to scale", ""], rows)]


def _tap(tap: TapDifference, result: CheckResult) -> list[str]:
    remarks = [f"{tap.nonfinite} values not finite"] if tap.nonfinite else []
    remarks += [f"another shape in {tap.shape_mismatches} batches"] if tap.shape_mismatches else []
    remarks += ["first to leave the tolerance"] if tap.name == result.departure else []
    return [tap.name, _number(tap.relative), _number(tap.up_to_scale), "; ".join(remarks)]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
