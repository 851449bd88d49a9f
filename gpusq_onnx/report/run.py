"""The report of `plan` and `apply`: the manager's outcome as JSON for machines and in words for people.

The JSON holds every row and every finding. The sheet says what was done and how often, why weights were left, what it
cost and gained, and repeats the warnings: calibration without real data is one.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import TypeAdapter

from gpusq_onnx.graph.cost import MEASURES
from gpusq_onnx.marks import AUTHOR
from gpusq_onnx.pipeline.outcome import Outcome, Proof, StepOutcome
from gpusq_onnx.pipeline.summary import Cost
from gpusq_onnx.report import advice
from gpusq_onnx.report.advice import Weighed
from gpusq_onnx.report.learning import learning
from gpusq_onnx.report.preparation import counted, line
from gpusq_onnx.report.sheet import Answer, Grid, Heading, Item, Line, Part, markdown

TOTALS = ("total", "before", "after", "ratio")
DECISIONS = ("tensors", "role", "decision", "reason")


def document(outcome: Outcome) -> dict[str, Any]:
    """The outcome as plain JSON values."""
    return {"tool": AUTHOR, **TypeAdapter(Outcome).dump_python(outcome, mode="json")}


def sheet(outcome: Outcome, weights: Sequence[Weighed] = ()) -> list[Part]:
    """The outcome in words.

    Args:
        weights: with the kernels that they can get; none: nothing is said of them.
    """
    parts: list[Part] = [Heading(outcome.output.path if outcome.output else f"Plan for {outcome.input.path}")]
    if weights:
        parts.append(Answer(advice.verdict(weights, will=outcome.output is None, target=outcome.target)))
    if outcome.output is None and (expected := advice.accuracy(outcome.steps)):
        parts.append(Line(expected))
    parts.append(Item(f"{AUTHOR}: {outcome.pipeline}"))
    parts.append(Item(f"input: {outcome.input.path}, {outcome.input.sha256}"))
    if outcome.output:
        parts.append(Item(f"output: {outcome.output.path}, {outcome.output.sha256}"))
    if outcome.data:
        parts.append(Item(f"data: {counted(outcome.data['samples'], outcome.data)}, seed {outcome.seed}"))
        parts += [Item(prepared)] if (prepared := line(outcome.data)) else []
    parts += [Item(f"warning: {warning}") for warning in outcome.warnings]
    for step in outcome.steps:
        parts += _step(step)
    parts += _proof(outcome.proof) if outcome.proof else []
    return [*parts, Heading("Totals", 2), *architecture(outcome), Grid(TOTALS, total_rows(outcome))]


def digest(outcome: Outcome, weights: Sequence[Weighed] = ()) -> str:
    """The sheet as Markdown."""
    return markdown(sheet(outcome, weights))


def _proof(proof: Proof) -> Iterator[Part]:
    """What onnxruntime made of the written file."""
    yield Heading("Proof", 2)
    yield Item(f"onnxruntime's defaults: {proof.default}; every node as written: {proof.unoptimised}")
    if proof.note:
        yield Item(proof.note)
    if proof.outputs:
        rows = [
            [o.output, _number(o.cosine), _number(o.relative), "judged" if o.judged else "after a choice of the model"]
            for o in proof.outputs
        ]
        yield Grid(["output", "cosine of the two", "relative distance", ""], rows)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def architecture(outcome: Outcome) -> list[Part]:
    """How the model was understood: blocks, stages, and the feature maps that matter for distillation."""
    found = outcome.architecture
    parts: list[Part] = [Item(f"{found.text}; {len(found.attention_tokens)} attention cores")]
    return parts + ([Item(f"critical feature maps: {', '.join(found.feature_maps)}")] if found.feature_maps else [])


def total_rows(outcome: Outcome) -> list[list[str]]:
    """What is before and after, of the totals that both sides have."""
    return [[text, f"{a:,.0f}", f"{b:,.0f}", ratio(a, b)] for text, (a, b) in both_totals(outcome).items()]


def decision_rows(step: StepOutcome) -> list[list[str]]:
    """How many tensors of one role met the same decision for the same reason."""
    groups = Counter((row.role, row.decision, row.reason) for row in step.rows)
    return [[str(number), role, decision, reason] for (role, decision, reason), number in groups.items()]


def both_totals(outcome: Outcome) -> dict[str, tuple[float, float]]:
    """The totals that both sides have, before and after, by what people call them."""
    return shared_totals(outcome.before, outcome.after)


def shared_totals(before_of: Cost, after_of: Cost) -> dict[str, tuple[float, float]]:
    """The same of two models' costs."""
    before, after = before_of.total, after_of.total
    return {text: (before[key], after[key]) for key, text in MEASURES.items() if before.get(key) and key in after}


def ratio(before: float, after: float, digits: int = 2) -> str:
    """What is left, in words where that is all: the dense MACs of a pruned model are no measure of it."""
    return "unchanged" if after == before else f"{after / before:.{digits}f}"


def _step(step: StepOutcome) -> Iterator[Part]:
    took = "" if step.seconds is None else f" ({step.seconds:.1f} s)"
    yield Heading(f"{step.name}{took}", 2)
    yield Grid(DECISIONS, decision_rows(step))
    yield from learning(step.learned)
    if step.facts:
        yield Line(f"Checked after this pass and every later one: {len(step.facts)} facts, e.g. {step.facts[0]}.")
