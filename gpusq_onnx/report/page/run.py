"""What `apply` and `plan` report, as sections of the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gpusq_onnx.pipeline.learned import Learned
from gpusq_onnx.pipeline.outcome import FileFacts, Outcome, StepOutcome
from gpusq_onnx.report.learning import ASIDE
from gpusq_onnx.report.page import pictures
from gpusq_onnx.report.page.blocks import Block, FactList, FoldedSection, Note, Picture, Section, Table, number
from gpusq_onnx.report.run import both_totals, ratio

_ROWS = 20  # of a table that is not folded
_ORDER = frozenset(("step", "epoch", "phase"))  # where in the training a row is


def of_run(outcome: Outcome) -> Iterator[Section]:
    """What `apply` did, or what `plan` says it would do."""
    yield Section("What was done" if outcome.output else "What would be done", list(_head(outcome)))
    yield Section("Totals", list(_totals(outcome)))
    for place, step in enumerate(outcome.steps):
        if (learned := step.learned).curve:
            yield Section(f"Training: {step.name}", list(_training(learned, f"curve{place}")))
    yield Section("Weights", list(_weights(outcome)))
    yield Section("Passes", [block for step in outcome.steps for block in _pass(step, outcome)])


def _head(outcome: Outcome) -> Iterator[Block]:
    rows = [("pipeline", outcome.pipeline), ("input", _file(outcome.input))]
    rows += [("output", _file(outcome.output))] if outcome.output else []
    if outcome.data:
        rows.append(("data", f"{outcome.data.get('samples')} samples of {outcome.data.get('kind')}"))
    found = outcome.architecture
    rows += [("seed", str(outcome.seed)), ("architecture", found.text)]
    rows += [("critical feature maps", ", ".join(found.feature_maps))] if found.feature_maps else []
    yield FactList(rows)


def _file(facts: FileFacts) -> str:
    return f"{facts.path}, {facts.bytes:,} bytes, sha256 {facts.sha256}"


def _totals(outcome: Outcome) -> Iterator[Block]:
    both = both_totals(outcome)
    rows = [[text, f"{a:,.0f}", f"{b:,.0f}", ratio(a, b, 3)] for text, (a, b) in both.items()]
    estimate = "" if outcome.output else " (estimate)"
    yield Table("", ["total", "before", f"after{estimate}", "ratio"], rows, (1, 2, 3))
    changed = {text: sides for text, sides in both.items() if sides[0] != sides[1]}
    if changed:
        yield Picture(pictures.ratios(changed), "What is left of each total that changed")


def _weights(outcome: Outcome) -> Iterator[Block]:
    before, after = outcome.before.sites, outcome.after.sites
    names = [name for name in before if name in after]
    if not names:
        yield Note("no weight is in both models under one name")
        return
    rows_of = [{row.tensor: row for row in step.rows if row.tensor in before} for step in outcome.steps]
    sizes = [[site.get("packed_bytes", 0.0) for site in (before[name], after[name])] for name in names]
    caption = "Packed bytes of each weight, before and after"
    yield Picture(pictures.bytes_of_weights([a for a, _ in sizes], [b for _, b in sizes]), caption)
    rows = []
    for name, (a, b) in zip(names, sizes, strict=True):
        reported = [row for found in rows_of if (row := found.get(name))]
        where = reported[0] if reported else None
        decisions = [_decision(found.get(name)) for found in rows_of]
        shape = " x ".join(map(str, where.shape)) if where else "-"
        head: list[str | FoldedSection] = [
            name,
            where.module or "-" if where else "-",
            where.role if where else "-",
            shape,
        ]
        rows.append([*head, *decisions, f"{a:,.0f}", f"{b:,.0f}", f"{b / a:.3f}" if a else "-"])
    passes = [step.name for step in outcome.steps]
    header = ["weight", "module", "role", "[out, k]", *passes, "packed bytes before", "after", "ratio"]
    numbers = range(len(header) - 3, len(header))
    yield Table("Every weight, and what each pass decided", header, rows, numbers, folded=len(rows) > _ROWS)


def _decision(row: Any) -> str | FoldedSection:
    return "-" if row is None else FoldedSection(row.decision, row.reason)


def _training(found: Learned, salt: str) -> Iterator[Block]:
    rows = [row for row in found.curve if "step" in row]
    names = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in ASIDE | _ORDER]
    features = [name for name in names if name.startswith("feature.")]
    for part, what in (([name for name in names if name not in features], "losses"), (features, "features")):
        if part:
            caption = f"{', '.join(part)}, by step" if part is not features else f"{len(part)} feature maps, by step"
            yield Picture(pictures.curves(rows, part, f"{salt}.{what}"), caption)
    if found.factors:
        distances = found.distances or {}
        cells = [[name, number(distances.get(name)), number(w)] for name, w in found.factors.items()]
        yield Table("Weight factors", ["critical feature map", "D_i", "w_i"], cells, (1, 2))
    if found.agreement:
        share = f"{found.agreement.before:.1%} -> {found.agreement.after:.1%}"
        yield FactList([(f"agreement with the teacher, {found.agreement.images} images", share)])
    if found.masks:
        looked = f"looked at {found.masks.checks} times, never broken"
        yield FactList([("masks", f"{found.masks.weights} weights, {looked}")])
    if found.movement:
        cells = [[name, number(a), number(b), number(b / a) if a else "-"] for name, (a, b) in found.movement.items()]
        yield Table("Learned scales", ["scale", "before", "after", "ratio"], cells, (1, 2, 3), folded=True)


def _pass(step: StepOutcome, outcome: Outcome) -> Iterator[Block]:
    took = "" if step.seconds is None else f", {step.seconds:.1f} s"
    decisions = ", ".join(f"{count} x {decision}" for decision, count in step.decisions.items())
    yield FactList([(f"{step.name}, version {step.version}{took}", decisions or "nothing to decide")])
    options = [[key, _option(value)] for key, value in step.options.items()]
    if options:
        yield Table(f"{step.name}: options", ["option", "value"], options, folded=True)
    others = [row for row in step.rows if row.tensor not in outcome.before.sites]
    if others:
        cells = [[row.tensor, row.role, row.op, row.decision, row.reason] for row in others]
        header = ["tensor", "role", "read by", "decision", "reason"]
        yield Table(f"{step.name}: other tensors", header, cells, folded=True)
    if step.facts:
        rows = [[fact] for fact in step.facts]
        yield Table(f"{step.name}: checked after this pass and every later one", ["fact"], rows, folded=True)


def _option(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {item}" for key, item in value.items()) or "none"
    return " ".join(map(str, value)) or "none" if isinstance(value, (list, tuple)) else str(value)
