"""What is read first: verdict, size, accuracy, agreement, kernels, speed; then warnings, commands and data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from gpusq_onnx.pipeline.outcome import Outcome
from gpusq_onnx.report.benchmark import Benchmark
from gpusq_onnx.report.checking import CheckResult
from gpusq_onnx.report.engine import EngineDocument
from gpusq_onnx.report.page import commands
from gpusq_onnx.report.page.blocks import Block, Card, Cards, Command, FactList, Note, Section, number
from gpusq_onnx.report.preparation import counted, line
from gpusq_onnx.report.run import both_totals
from gpusq_onnx.report.tuning import COSTS, SensitivityDocument, TuningDocument
from gpusq_onnx.tasks.scored import SCORED

Report = Outcome | CheckResult | Benchmark | EngineDocument | SensitivityDocument
"""What a verb reported."""

_PACKED, _FILE = "packed bytes", "file bytes"


@dataclass(frozen=True)
class ModelFacts:
    """What was looked up in the models that a page is about.

    Attributes:
        kernels: how many weights of the last model get each kernel; empty where that is not known.
        totals: of the first and the last model, see `report.run.both_totals`; what a report of `apply` says wins.
        missing: a sentence about what is left out because a model is not there; "".
    """

    kernels: Mapping[str, int] = field(default_factory=dict)
    totals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    missing: str = ""


def summary(reports: Sequence[Report], seen: ModelFacts = ModelFacts()) -> Section:
    """The section that a page begins with; `seen`: what the models themselves show."""
    cards = [*_verdict(reports), *_size(reports, seen.totals), *(card for make in _MAKERS for card in make(reports))]
    blocks: list[Block] = [Cards([*cards, *([_kernels(seen.kernels)] if seen.kernels else [])])]
    blocks += [Note(seen.missing)] if seen.missing else []
    warnings = dict.fromkeys(warning for report in reports for warning in _warnings(report))
    blocks += [Note(f"warning: {warning}", "bad") for warning in warnings]
    texts = [text for report in reports if (text := _command(report))]
    blocks += [Command("To make this again", "\n".join(texts))] if texts else []
    facts = list(dict.fromkeys(fact for report in reports for fact in _data(report)))
    blocks += [FactList(facts)] if facts else []
    return Section("Summary", blocks)


def _verdict(reports: Sequence[Report]) -> Iterator[Card]:
    failures = [failure for report in reports for failure in _failures(report)]
    checks = [report for report in reports if isinstance(report, CheckResult)]
    asked = [f"{name.replace('_', ' ')} {v:g}" for c in checks for name, v in asdict(c.gates).items() if v is not None]
    runs = [report for report in reports if isinstance(report, Outcome)]
    if failures:
        yield Card("verdict", "not met", "; ".join(failures), "bad")
    elif asked:
        yield Card("verdict", "gates met", ", ".join(asked), "good")
    elif met := [report for report in reports if isinstance(report, TuningDocument) and report.met]:
        yield Card("verdict", "budget met", met[0].asked, "good")
    elif any(run.proof is not None and run.proof.default == "ran" for run in runs):
        yield Card("verdict", "runs", "proven in onnxruntime; no gates were set", "good")
    elif any(run.output is None for run in runs):
        yield Card("verdict", "a plan", "nothing was written")
    elif checks:
        yield Card("verdict", "no gates", "the models were compared, and nothing had to hold")


def _size(reports: Sequence[Report], seen: Mapping[str, tuple[float, float]]) -> Iterator[Card]:
    for totals in (*(both_totals(report) for report in reports if isinstance(report, Outcome)), seen):
        before, after = totals.get(_PACKED, (0.0, 0.0))
        if before and after:
            files = totals.get(_FILE)
            stored = f"; the file {_bytes(files[0])} → {_bytes(files[1])}" if files else ""
            smaller = f"{before / after:.1f}x smaller" if after < before else "unchanged"
            more = f"packed {_bytes(before)} → {_bytes(after)}{stored}"
            yield Card("size", smaller, more, "good" if after < before else "")
            return


def _accuracy(reports: Sequence[Report]) -> Iterator[Card]:
    for report in reports:
        if not isinstance(report, CheckResult):
            continue
        before, after = report.comparison.reference_metrics or {}, report.comparison.candidate_metrics or {}
        for key, metric in SCORED.items():
            if key in before and key in after:
                change = f"{100 * (after[key] - before[key]):+.1f} points"
                value = f"{before[key]:.1%} → {after[key]:.1%}"
                yield Card(metric.name, value, f"{change} on {report.comparison.samples} samples")


def _agreement(reports: Sequence[Report]) -> Iterator[Card]:
    for report in reports:
        if not isinstance(report, CheckResult):
            continue
        found = report.comparison
        if found.top1_agreement is not None:
            yield Card("agreement", f"{found.top1_agreement:.1%}", f"equal best classes, {found.samples} samples")
            continue
        cosines = [output.cosine_mean for output in found.outputs if output.cosine_mean is not None]
        if cosines:
            yield Card("agreement", f"{min(cosines):.4g}", f"lowest mean cosine of an output, {found.samples} samples")


def _speed(reports: Sequence[Report]) -> Iterator[Card]:
    for report in reports:
        if not isinstance(report, Benchmark):
            continue
        base = next((row for row in report.rows if row.format == report.reference), None)
        others = [row for row in report.rows if row.given and row is not base]
        cells = [(row, n, c) for row in others for n, c in row.cells.items() if c.against_reference]
        if cells:
            row, batch, cell = max(cells, key=lambda one: one[2].against_reference or 0.0)
            yield Card(
                "speed", f"{cell.against_reference:.2f}x", f"{row.format} over {report.reference}, batch {batch}"
            )


def _chosen(reports: Sequence[Report]) -> Iterator[Card]:
    for report in reports:
        if isinstance(report, TuningDocument) and (chosen := report.chosen):
            values = ", ".join(f"{name} {value:.4g}" for name, value in chosen.values.items())
            cost = report.cost
            yield Card("chosen", f"{chosen.of(cost):.1%}", f"of the {COSTS[cost]}, {chosen.name}: {values}")


def _engine(reports: Sequence[Report]) -> Iterator[Card]:
    for report in reports:
        if isinstance(report, EngineDocument):
            value = f"{number(report.sparsity.chosen)} of {number(report.sparsity.eligible)}"
            yield Card("sparse layers", value, "that TensorRT chose, of those it found eligible")


_MAKERS = (_accuracy, _agreement, _speed, _chosen, _engine)


def _kernels(found: Mapping[str, int]) -> Card:
    whole = sum(found.values())
    sparse = sum(count for kernel, count in found.items() if kernel.startswith("sparse"))
    best, most = max(found.items(), key=lambda entry: entry[1])
    value = f"{sparse} of {whole} sparse" if sparse else f"{most} of {whole} {best}"
    listed = ", ".join(f"{count} {kernel}" for kernel, count in found.items())
    return Card("kernels", value, f"that TensorRT can choose for the weights: {listed}")


def _failures(report: Report) -> Sequence[str]:
    if isinstance(report, (CheckResult, EngineDocument)):
        return report.failures
    return [report.failure] if isinstance(report, TuningDocument) and report.failure else ()


def _warnings(report: Report) -> Sequence[str]:
    if isinstance(report, CheckResult):
        notes: Sequence[str] = report.data.get("notes", ())
        return notes
    return () if isinstance(report, Benchmark) else report.warnings


def _command(report: Report) -> str:
    if isinstance(report, Outcome):
        return commands.of_run(report)
    if isinstance(report, CheckResult):
        return commands.of_check(report)
    return commands.of_sensitivity(report) if isinstance(report, SensitivityDocument) else ""


def _data(report: Report) -> Iterator[tuple[str, str]]:
    data = report.data if isinstance(report, (Outcome, CheckResult)) else None
    if not data:
        return
    options = data.get("options") or {}
    where, samples, name = options.get("path"), data["samples"], "compared on"
    if isinstance(report, Outcome):
        samples, name = min(samples, options.get("calibrate") or samples), "calibrated on"
    said = counted(samples, data) + (f" from {where}" if where else "")
    yield name, "; ".join(filter(None, [said, line(data)]))


def _bytes(size: float) -> str:
    for unit, least in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= least:
            return f"{size / least:.3g} {unit}"
    return f"{size:.0f} B"
