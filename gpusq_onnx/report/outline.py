"""A screen that says the essential: the default output of `plan`, `apply` and `inspect`; `--full` and JSON have all.

Rows of one kind are one line, `12 x qkv  prune  2:4 along axis 0`, folded to the width; what is beyond the height is
counted and not shown.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from shlex import join, quote
from typing import Any

from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.marks import METADATA
from gpusq_onnx.pipeline.base import SKIP
from gpusq_onnx.pipeline.outcome import Outcome, Proof, StepOutcome
from gpusq_onnx.report import advice
from gpusq_onnx.report.advice import Weighed
from gpusq_onnx.report.columns import columns, fair, folded, within
from gpusq_onnx.report.inspection import Inspection, WeightReport
from gpusq_onnx.report.kernels import ONNXRUNTIME
from gpusq_onnx.report.page import commands
from gpusq_onnx.report.preparation import counted, data_words
from gpusq_onnx.report.preparation import line as prepared
from gpusq_onnx.report.run import TOTALS, total_rows

LINES = 36  # of groups, over all passes, and two less for each: with totals and advice no screen passes 60 lines
FULL = "--full"
_IMAGES, _ARRAYS = "images/", "inputs.npz"
_PROVEN = {
    ("ran", "ran"): "the written model runs in onnxruntime with and without optimisations",
    ("unfused: ran", "ran"): "the written model runs in onnxruntime with Q/DQ as written and without optimisations",
    ("twin: ran", "twin: ran"): "the same in ordinary operators runs in onnxruntime with and without optimisations",
}
_ZEROS = re.compile(r" \(\d+% zeros\)")  # which differ from weight to weight


def of_plan(outcome: Outcome, weights: Sequence[Weighed], width: int, data: DataOptions) -> list[str]:
    """What would be done, to how many tensors, and what comes of it; `data`: for the next command."""
    model = outcome.input.path
    lines = folded(f"{model}: {outcome.pipeline}", width)
    lines += ["", *folded(advice.verdict(weights, will=True, target=outcome.target), width)]
    lines += folded(advice.accuracy(outcome.steps), width)
    lines += _steps(outcome.steps, width)
    lines += ["", *_totals(outcome), ""]
    for text in advice.for_plan(weights, outcome.pipeline, outcome.target):
        lines += folded(text, width)
    given = [*data_words(data.echo(), data.model_fields_set), *commands.run_words(outcome)]
    words = ["--passes", outcome.pipeline, *([] if data.path else ["--data", _like(outcome.data)]), *given, model]
    return [*lines, "next:", f"  gpusq-onnx apply {join(words)}"]


def of_run(outcome: Outcome, weights: Sequence[Weighed], width: int) -> list[str]:
    """What was done, and what came of it."""
    made = outcome.output.path if outcome.output else "nothing"
    lines = folded(f"{outcome.input.path} -> {made}: {outcome.pipeline}", width)
    lines += ["", *folded(advice.verdict(weights, will=False, target=outcome.target), width)]
    if outcome.data:
        held = (outcome.data.get("options") or {}).get("hold_out")
        used = counted(outcome.data["samples"], outcome.data) + (f", {held} held out" if held else "")
        lines += folded(f"{used}, seed {outcome.seed}", width)
        lines += folded(prepared(outcome.data), width)
    lines += _steps(outcome.steps, width)
    lines += ["", *_totals(outcome), ""]
    if outcome.proof:
        lines += folded(_proven(outcome.proof), width)
    return [*lines, *_next_check(outcome, made)]


def _proven(proof: Proof) -> str:
    """That the written model runs, and how close the two ways are."""
    found = proof.default, proof.unoptimised
    shown = _PROVEN.get(found) or f"not proven: onnxruntime's defaults {found[0]}, as written {found[1]}"
    cosines = [output.cosine for output in proof.outputs if output.cosine is not None]
    return shown + (f"; lowest cosine between the two {min(cosines):.4g}" if cosines else "")


def _next_check(outcome: Outcome, made: str) -> list[str]:
    """The command that compares both: on what was held out, where something was."""
    options, model = ((outcome.data or {}).get("options") or {}), outcome.input.path
    if options.get("hold_out"):
        return ["next, on what was held out:", f"  {commands.check_of_run(outcome)}"]
    data = options.get("path") or _like(outcome.data)
    command = f"gpusq-onnx check --data {quote(str(data))} {quote(model)} {quote(made)}"
    return [f"next, best with other {'inputs' if data == _ARRAYS else 'images'}:", f"  {command}"]


def _like(data: Mapping[str, Any] | None) -> str:
    """What data for the model may be called, where it had none of its own: synthetic images, or tensors."""
    tensors = data is not None and data["kind"] == "synthetic" and not data.get("preprocess")
    return _ARRAYS if tensors else _IMAGES


def of_inspection(name: str, found: Inspection, width: int) -> list[str]:
    """The weights by kind, their kernels, and what the file can still take."""
    lines = folded(f"{name}: opset {found.opset}, {advice.verdict(found.weights, will=False)}", width)
    roles: dict[tuple[str, ...], Counter[str]] = {}
    for weight in found.weights:
        roles.setdefault(_kind(weight), Counter())[weight.role] += 1
    rows = [
        [f"{number} x", _listed([role for role, other in counts.items() if other == number]), *shown]
        for kind, counts in roles.items()
        for place, number in enumerate(sorted(set(counts.values()), reverse=True))
        for shown in [[*kind[:-1], "as above"] if place and len(kind[-1]) > len("as above") else kind]
    ]
    header = ["", "role", "type", "pattern", "Q/DQ on", "kernel", "in its way"]
    if rows:
        lines += ["", *within(columns(header, rows, width), LINES, FULL)]
    reasons = Counter(other.reason for other in found.others)
    remarks = [f"{count} x no weight matrix: {reason}" for reason, count in reasons.items()] + found.advice
    if made := found.metadata.get(f"{METADATA}pipeline"):
        remarks.append(f"made by gpusq-onnx {found.metadata.get(f'{METADATA}version', '')}: {made}")
    lines += [*([""] if remarks else []), *(line for text in remarks for line in folded(text, width))]
    heading = "next, with the float model that it was made of:" if found.illegal else "next:"
    return [*lines, heading, f"  gpusq-onnx {join(_next(name, found))}"]


def _next(name: str, found: Inspection) -> list[str]:
    """What a file that has been looked at is for: an engine or a benchmark, where it is compressed, else a plan."""
    plan = [
        "plan",
        "--passes",
        "prune24,qdq-int8{profile=sparse-int8}",
        "--data",
        _IMAGES if found.takes_images else _ARRAYS,
    ]
    if found.illegal:
        return [*plan, "float.onnx"]
    if any(weight.kernel == ONNXRUNTIME for weight in found.weights):
        return ["bench", "--backend", "onnxruntime", name]
    if any(weight.quantised for weight in found.weights) or f"{METADATA}pipeline" in found.metadata:
        return ["build", "-o", str(Path(name).with_suffix(".plan")), name]
    return [*plan, name]


def _steps(steps: Sequence[StepOutcome], width: int) -> list[str]:
    tables = [columns([""] * 4, list(_lines(_groups(step))), width) if step.rows else [] for step in steps]
    most = fair(tables, LINES - 2 * len(steps))
    lines: list[str] = []
    for step, table in zip(steps, tables, strict=True):
        took = "" if step.seconds is None else f", {step.seconds:.1f} s"
        counts = ", ".join(f"{number} {decision}" for decision, number in step.decisions.items()) or "nothing to do"
        lines += ["", *folded(f"{step.name}: {counts}{took}", width), *within(table, most, FULL)]
    return lines


def _lines(groups: Sequence[tuple[int, str, str, str]]) -> Iterator[list[str]]:
    """The cells of each group; what is decided as in the line above is said so."""
    before = None
    for count, roles, decision, reason in groups:
        same = (decision, reason) == before
        before = decision, reason
        yield [f"  {count} x", roles, decision, "as above" if same else reason]


def _groups(step: StepOutcome) -> list[tuple[int, str, str, str]]:
    """(how many, roles, decision, reason), what is left alone last, what has one reason together.

    Roles of one number and decision share a line.
    """
    single = Counter((row.role, row.decision, _general(row.reason, row.role)) for row in step.rows)
    merged: dict[tuple[int, str, str], list[str]] = {}
    for (role, decision, reason), number in single.items():
        merged.setdefault((number, decision, reason), []).append(role)
    groups = [(number, _listed(roles), decision, reason) for (number, decision, reason), roles in merged.items()]
    most: dict[tuple[str, str], int] = {}  # in the order in which reasons are met
    for number, _, *why in groups:
        most[why[0], why[1]] = max(number, most.get((why[0], why[1]), 0))
    met = {why: place for place, why in enumerate(most)}
    return sorted(groups, key=lambda g: (g[2] == SKIP, -most[g[2], g[3]], met[g[2], g[3]], -g[0]))


def _general(reason: str, role: str) -> str:
    """A reason without the role that it names, which has a column."""
    side, of, _ = role.partition(" of ")
    return reason.replace(role, side) if of else re.sub(rf"\boperand {re.escape(role)}\b", "operand", reason)


def _listed(roles: Sequence[str]) -> str:
    """Names in a row: input of qkv, proj."""
    named: dict[str, list[str]] = {}
    for role in roles:
        side, of, name = role.rpartition(" of ")
        named.setdefault(side + of, []).append(name)
    return ", ".join(side + ", ".join(names) for side, names in named.items())


def _totals(outcome: Outcome) -> list[str]:
    rows = total_rows(outcome)
    first, *others = [max(len(row[column]) for row in (TOTALS, *rows)) for column in range(len(TOTALS))]
    return [
        "  ".join([name.ljust(first), *(cell.rjust(size) for cell, size in zip(cells, others, strict=True))])
        for name, *cells in (TOTALS, *rows)
    ]


def _kind(weight: WeightReport) -> tuple[str, ...]:
    kind = weight.dtype if weight.codes in ("", weight.dtype) else f"{weight.dtype} as {weight.codes}"
    pattern = weight.patterns[0] if weight.patterns else "dense"
    texts = (_ZEROS.sub("", o.text.partition(": ")[0]) for o in weight.obstacles if o.decides)
    way = "; ".join(dict.fromkeys(texts)) or "-"
    return kind, pattern, " ".join(weight.quantised) or "-", str(weight.kernel), way
