"""The result of `check`: a comparison, the gates that were set, and a TensorRT parser's verdict, as data and Markdown.

A gate that cannot be measured (top-1 without labels, agreement of a detector) is a usage error, before the models run
where that can be known: a gate that never fails would be worse than none.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.source import InputSpec, open_source
from gpusq_onnx.errors import UsageError
from gpusq_onnx.pipeline.progress import Progress
from gpusq_onnx.report.markdown import table
from gpusq_onnx.runtime.compare import Comparison, compare
from gpusq_onnx.runtime.gates import Gates
from gpusq_onnx.runtime.ort import Session
from gpusq_onnx.runtime.parser import Verdict
from gpusq_onnx.tasks.classification import Classification


@dataclass(frozen=True)
class CheckResult:
    """What `check` found."""

    original: str
    compressed: str
    comparison: Comparison
    data: dict[str, Any]
    gates: Gates
    failures: tuple[str, ...]
    parser: Verdict | None = None

    def with_verdict(self, verdict: Verdict) -> "CheckResult":
        """The same with the parser's verdict, which is a gate too."""
        refusal = () if verdict.ok else (f"{verdict.library} refuses the model: {verdict.errors[0]}",)
        return replace(self, parser=verdict, failures=(*self.failures, *refusal))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "passed": not self.failures}


def check_models(
    original: Path, compressed: Path, options: DataOptions, gates: Gates, progress: Progress
) -> CheckResult:
    """Run both models on the data and judge the gates.

    Raises:
        UsageError: a missing file, or a gate that this data or these models cannot answer.
        UnsupportedModelError, UnsupportedDataError: see `runtime.compare.compare`.
    """
    inputs = [InputSpec(info.name, info.dtype, info.shape) for info in Session(original).inputs()]
    source = open_source(options, inputs)
    if gates.need_labels and not source.labelled:
        raise UsageError(
            "a gate on top-1 needs labels, and the data has none",
            where="--min-top1, --max-top1-drop",
            hint="give --classes FILE (line i names the folder of class i), or an .npz with an array named labels",
        )
    progress.start("comparing", len(source))
    try:
        found = compare(original, compressed, source, metric=Classification, progress=progress.advance)
    finally:
        progress.finish()
    data = {"options": options.echo(), **source.describe(), "sha256": source.digest()}
    return CheckResult(str(original), str(compressed), found, data, gates, tuple(gates.failures(found)))


def digest(result: CheckResult) -> str:
    """The result as Markdown, readable as plain text."""
    found = result.comparison
    lines = [f"# {result.compressed} against {result.original}", ""]
    lines += [f"{found.samples} samples of {result.data['kind']}", ""]
    rows = [
        [o.name, _number(o.cosine_mean), _number(o.cosine_min), _number(o.max_abs), _number(o.mean_relative)]
        for o in found.outputs
    ]
    lines += table(["output", "cosine", "lowest cosine", "max difference", "mean difference / range"], rows)
    if found.top1_agreement is not None:
        lines += ["", f"agreement: top-1 {found.top1_agreement:.2%}, top-5 {_percent(found.top5_agreement)}"]
    if found.reference_metrics and found.candidate_metrics:
        before, after = found.reference_metrics, found.candidate_metrics
        names = {"top1": "top-1", "top5": "top-5"}
        lines += [f"{name}: {before[key]:.2%} -> {after[key]:.2%}" for key, name in names.items() if key in before]
    if result.parser:
        built = ", engine built" if result.parser.built else ""
        verdict = "accepted" if result.parser.ok else "refused"
        lines += ["", f"parser: {result.parser.library}: {verdict}{built}", *(f"- {e}" for e in result.parser.errors)]
    asked = [f"{name} = {value:g}" for name, value in asdict(result.gates).items() if value is not None]
    if asked or result.failures:
        lines += ["", f"gates: {', '.join(asked) or 'none'}: {'NOT MET' if result.failures else 'met'}"]
        lines += [f"- {failure}" for failure in result.failures]
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"
