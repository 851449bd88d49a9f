"""The result of `check`: a comparison, the gates that were set, and a TensorRT parser's verdict, as data.

`workflows.check` makes it; `sheet` says it in words.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from shlex import join
from typing import Any

from gpusq_onnx.errors import GateFailed
from gpusq_onnx.marks import AUTHOR
from gpusq_onnx.report.preparation import counted, given_words, line
from gpusq_onnx.report.sheet import Answer, Commands, Grid, Heading, Item, Line, Part, markdown
from gpusq_onnx.runtime.compare.gates import Gates
from gpusq_onnx.runtime.compare.outputs import Comparison
from gpusq_onnx.runtime.compare.taps import TapDifference
from gpusq_onnx.runtime.tensorrt.parser import Verdict
from gpusq_onnx.tasks.scored import SCORED

METRICS = {
    "top1": SCORED["top1"].name, "top5": "top-5",
    "AP": SCORED["AP"].name, "AP50": "AP50", "AP75": "AP75",
    "mask_AP": SCORED["mask_AP"].name, "mask_AP50": "mask AP50", "mask_AP75": "mask AP75",
    "mIoU": SCORED["mIoU"].name, "aAcc": "pixel accuracy",
}  # fmt: skip
"""Names of what the tasks' metrics measure, by their keys."""

_RUNTIMES = {"cuda": "onnxruntime's CUDA provider", "tensorrt": "TensorRT"}
_ROWS = 24  # of taps in words; of more, those around the departure


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """What `check` found.

    Attributes:
        original, compressed: the two files, as they were named.
        comparison: how far apart their outputs are, and what the metrics say of both.
        data: what the samples are and how they became inputs, as in the report of a plan.
        gates: what was asked for.
        failures: what is not met, a sentence each; empty where all is.
        parser: what a TensorRT parser says; None where none was asked.
        runtime: what ran the compressed model.
        tolerance: of the taps; None where there are none.
        departure: the first tap in graph order that leaves the tolerance.
        artefacts: texts of Polygraphy's files by their names.
        continuation: commands that go on from them.
        notes: what ran in place of a file that no onnxruntime kernel runs.
        taps: the inner tensors that were asked for, as they were named.
        sha256: of the two models, each with its external data; "" in reports of earlier builds.
        in_memory: the compressed model lies in no file that stays.
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
    notes: tuple[str, ...] = ()
    taps: tuple[str, ...] = ()
    sha256: tuple[str, str] = ("", "")
    in_memory: bool = False

    def with_verdict(self, verdict: Verdict) -> "CheckResult":
        """The same with the parser's verdict, which is a gate too."""
        refusal = () if verdict.ok else (f"{verdict.library} refuses the model: {verdict.errors[0]}",)
        return replace(self, parser=verdict, failures=(*self.failures, *refusal))

    @property
    def passed(self) -> bool:
        """Every gate is met, and nothing refuses the model."""
        return not self.failures

    def require(self) -> "CheckResult":
        """Itself, where it passed.

        Raises:
            GateFailed: names what is not met.
        """
        if self.failures:
            what = f"{len(self.failures)} of the checks failed"
            raise GateFailed(what, where=self.compressed, found="; ".join(self.failures))
        return self

    def __str__(self) -> str:
        return markdown(sheet(self))

    def digest(self) -> str:
        """The same for who gave the gates as options."""
        return markdown(sheet(self, options=True))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        values = asdict(replace(self, artefacts={}))
        return {"tool": AUTHOR, **values, "artefacts": sorted(self.artefacts), "passed": not self.failures}


def summary(found: Comparison) -> str:
    """A comparison in half a line: the lowest of the outputs' mean cosines, and agreement where there are classes."""
    cosines = [output.cosine_mean for output in found.outputs if output.cosine_mean is not None]
    parts = [f"cosine {min(cosines):.4g}"] if cosines else []
    parts += [] if found.top1_agreement is None else [f"top-1 agreement {found.top1_agreement:.2%}"]
    after = found.candidate_metrics or {}
    parts += [f"{name} {after[key]:.2%}" for key, name in METRICS.items() if key in after]
    return ", ".join(parts) or "nothing to compare"


def asked(gates: Gates, *, options: bool = False) -> list[str]:
    """The gates that were set: `max_top1_drop = 20`, or as options, `--max-top1-drop 20`."""
    values = {name: value for name, value in asdict(gates).items() if value is not None}
    if options:
        return [f"--{name.replace('_', '-')} {value:g}" for name, value in values.items()]
    return [f"{name} = {value:g}" for name, value in values.items()]


def sheet(result: CheckResult, *, options: bool = False) -> list[Part]:
    """The result in words: the gates, what was lost, then how that was measured; `options`: as `asked`."""
    found, data = result.comparison, result.data
    parts: list[Part] = [Heading(f"{result.compressed} against {result.original}")]
    gates = asked(result.gates, options=options)
    if gates or result.failures:
        parts.append(Answer(f"gates: {', '.join(gates) or 'none'}: {'NOT MET' if result.failures else 'met'}"))
        parts += [Item(failure) for failure in result.failures]
    if rows := metric_rows(found):
        parts.append(Grid(["", "original", "compressed", "change"], rows))
    if found.default is not None:
        parts.append(Line(f"with onnxruntime's defaults, where Q/DQ are fused: {summary(found.default)}"))
    outputs = [
        [o.name, _number(o.cosine_mean), _number(o.cosine_min), _number(o.max_abs), _number(o.mean_relative)]
        for o in found.outputs
    ]
    parts.append(Grid(["output", "cosine", "lowest cosine", "max difference", "mean difference / range"], outputs))
    where = "" if result.runtime == "cpu" else f", compressed on {_RUNTIMES[result.runtime]}"
    parts.append(Item(f"{counted(found.samples, data)}{where}"))
    parts += [Item(prepared)] if (prepared := line(data)) else []
    parts += [Item(f"note: {note}") for note in result.notes]
    parts += _taps(result)
    if result.parser:
        built = ", engine built" if result.parser.built else ""
        verdict = "accepted" if result.parser.ok else "refused"
        parts.append(Line(f"parser: {result.parser.library}: {verdict}{built}"))
        parts += [Item(error) for error in result.parser.errors]
    if result.continuation:
        parts.append(Commands("go on from here with Polygraphy", result.continuation))
    if result.in_memory:
        return [*parts, Line("next, in Python: .save(FILE) of the compressed model; FILE can be built")]
    return [*parts, *([Commands("next", [join(_next(result))])] if _next(result) else [])]


def _next(result: CheckResult) -> list[str]:
    """An engine, where all is well; else where the outputs begin to stray."""
    if not result.compressed.endswith(".onnx") or (result.failures and result.comparison.taps):
        return []
    if result.passed:
        return ["gpusq-onnx", "build", "-o", f"{result.compressed.removesuffix('.onnx')}.plan", result.compressed]
    words = ["gpusq-onnx", "check", "--taps", "blocks", *given_words(result.data, scores=True)]
    return [*words, result.original, result.compressed]


def metric_rows(found: Comparison) -> list[list[str]]:
    """What the tasks' metrics say, and agreement: [name, original, compressed, change in points]."""
    before, after = found.reference_metrics or {}, found.candidate_metrics or {}
    rows = [
        [name, f"{before[key]:.2%}", f"{after[key]:.2%}", f"{100 * (after[key] - before[key]):+.2f} points"]
        for key, name in METRICS.items()
        if key in before and key in after
    ]
    agreed = (("top-1 agreement", found.top1_agreement), ("top-5 agreement", found.top5_agreement))
    return rows + [[name, "", f"{value:.2%}", ""] for name, value in agreed if value is not None]


def _taps(result: CheckResult) -> list[Part]:
    """The taps around the first that leaves the tolerance, or all where they are few."""
    taps, names = result.comparison.taps, [tap.name for tap in result.comparison.taps]
    if not taps:
        return []
    middle = names.index(result.departure) if result.departure else len(taps)
    start = max(0, min(middle - _ROWS // 2, len(taps) - _ROWS))
    rows = [_tap(tap, result) for tap in taps[start : start + _ROWS]]
    shown = f", {len(rows)} of them" if len(rows) < len(taps) else ""
    verdict = f"{result.departure} is the first of them to leave it" if result.departure else "none leaves it"
    said = f"{len(taps)} inner tensors in graph order{shown}; tolerance {result.tolerance:g}: {verdict}"
    return [Line(said), Grid(["tensor", "distance", "up to scale", ""], rows)]


def _tap(tap: TapDifference, result: CheckResult) -> list[str]:
    remarks = [f"{tap.nonfinite} values not finite"] if tap.nonfinite else []
    remarks += [f"another shape in {tap.shape_mismatches} batches"] if tap.shape_mismatches else []
    remarks += ["first to leave the tolerance"] if tap.name == result.departure else []
    return [tap.name, _number(tap.relative), _number(tap.up_to_scale), "; ".join(remarks)]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
