"""What `check`, `build` and `bench` report, as sections of the page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gpusq_onnx.report.benchmark import Benchmark, columns, machine
from gpusq_onnx.report.checking import CheckResult, asked, metric_rows, summary
from gpusq_onnx.report.engine import EngineDocument
from gpusq_onnx.report.page import pictures
from gpusq_onnx.report.page.blocks import Block, FactList, Note, Picture, Section, Table, number


def of_check(result: CheckResult) -> Iterator[Section]:
    """The comparison, the gates, and what a parser said."""
    yield Section(f"Comparison: {Path(result.compressed).name}", list(_comparison(result)))
    if result.comparison.taps:
        yield Section("Inner tensors", list(_taps(result)))


def of_engine(document: EngineDocument) -> Iterator[Section]:
    """An engine: its facts, and each weight's prediction beside what was built."""
    engine, sparsity = document.engine, document.sparsity
    facts = [
        ("built from", document.model),
        ("engine", f"{engine.path}, {engine.bytes:,} bytes, sha256 {engine.sha256}"),
        ("by", str(document.library.get("library"))),
        ("sparse layers", f"{number(sparsity.chosen)} chosen of {number(sparsity.eligible)} eligible"),
    ]
    notes = [Note(f"gate: {failure}", "bad") for failure in document.failures]
    keys = ("name", "module", "predicted", "precision", "tactic", "chosen", "verdict", "reason", "remedy")
    rows = [[number(getattr(weight, key)) for key in keys] for weight in document.weights]
    yield Section("Engine", [FactList(facts), *notes, Table("Prediction and truth, weight by weight", keys, rows)])


def of_bench(found: Benchmark) -> Iterator[Section]:
    """Latency and throughput beside the dense baselines, and what they were timed on."""
    header, rows = columns(found)
    notes = [Note(note) for note in (*machine(found), *found.notes)]
    yield Section(f"Benchmark: {found.backend}", [*notes, Table("", header, rows, range(2, len(header)))])


def _comparison(result: CheckResult) -> Iterator[Block]:
    found = result.comparison
    data = f"{found.samples} samples of {result.data.get('kind')}"
    yield FactList(
        [("original", result.original), ("compressed", result.compressed), ("runs on", result.runtime), ("data", data)]
    )
    yield from _verdict(result)
    if rows := metric_rows(found):
        yield Table("Accuracy and agreement", ["", "original", "compressed", "change"], rows, (1, 2, 3))
    header = ["output", "cosine", "lowest cosine", "max difference", "mean difference / range"]
    cells = [[o.name, *map(number, (o.cosine_mean, o.cosine_min, o.max_abs, o.mean_relative))] for o in found.outputs]
    yield Table("Outputs", header, cells, range(1, len(header)))
    if found.default is not None:
        yield Note(f"With onnxruntime's defaults, where Q/DQ are fused: {summary(found.default)}")
    if result.parser:
        tone = "good" if result.parser.ok else "bad"
        built = ", engine built" if result.parser.built else ""
        yield Note(f"{result.parser.library}: {'accepted' if result.parser.ok else 'refused'}{built}", tone)
        for error in result.parser.errors:
            yield Note(error, "bad")


def _verdict(result: CheckResult) -> Iterator[Block]:
    gates = asked(result.gates)
    if result.failures:
        yield Note("Gates not met.", "bad")
        for failure in result.failures:
            yield Note(failure, "bad")
    elif gates:
        yield Note(f"Gates met: {', '.join(gates)}", "good")


def _taps(result: CheckResult) -> Iterator[Block]:
    taps, tolerance = result.comparison.taps, result.tolerance or 0.0
    names = [tap.name for tap in taps]
    first = names.index(result.departure) if result.departure else None
    if result.departure:
        yield Note(f"{result.departure} is the first to leave the tolerance of {tolerance:g}", "bad")
    else:
        yield Note(f"none of {len(taps)} leaves the tolerance of {tolerance:g}", "good")
    judged = [tap.relative if tap.up_to_scale is None else tap.up_to_scale for tap in taps]
    caption = "Distance of inner tensors, up to scale where scale is free"
    yield Picture(pictures.distances(judged, tolerance, first), caption)
    rows = [[tap.name, number(tap.relative), number(tap.up_to_scale), str(tap.nonfinite)] for tap in taps]
    yield Table("Inner tensors", ["tensor", "distance", "up to scale", "not finite"], rows, (1, 2, 3), folded=True)
