"""The commands that make a report's result again, from what the report says: pipeline, data options, gates, files.

An option is written where it was given, also where it says what is the default: what a model remembers would count in
its place. Reports of earlier builds do not say what was given; of those, what is not the default is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from shlex import join
from typing import TYPE_CHECKING, Any

from gpusq_onnx.pipeline.outcome import Outcome
from gpusq_onnx.report.preparation import given_words, number

if TYPE_CHECKING:
    from gpusq_onnx.report.checking import CheckResult
    from gpusq_onnx.report.tuning import SensitivityDocument

_TOLERANCE = 0.1  # of taps, by default


def of_run(outcome: Outcome) -> str:
    """`apply`, or `plan`."""
    words = ["gpusq-onnx", "apply" if outcome.output else "plan", "--passes", outcome.pipeline]
    words += [*given_words(outcome.data, outcome.seed), *run_words(outcome)]
    words += ["-o", outcome.output.path] if outcome.output else []
    return join([*words, outcome.input.path])


def check_of_run(outcome: Outcome) -> str:
    """`check` of what a run made, on the samples that it held out."""
    made = outcome.output.path if outcome.output else ""
    return join(["gpusq-onnx", "check", *given_words(_compared(outcome.data or {})), outcome.input.path, made])


def of_check(result: CheckResult) -> str:
    """`check` with its gates, taps and parser; a parser's shapes and a folder of artefacts are left out."""
    words = ["gpusq-onnx", "check", *given_words(_compared(result.data), scores=True)]
    for name, value in asdict(result.gates).items():
        words += [] if value is None else [f"--{name.replace('_', '-')}", number(value)]
    words += ["--on", result.runtime] if result.runtime != "cpu" and result.compressed.endswith(".onnx") else []
    for tap in result.taps:
        words += ["--taps", tap]
    tolerance = result.tolerance
    words += [] if tolerance in (None, _TOLERANCE) else ["--tap-tolerance", number(tolerance or 0.0)]
    words += ["--parser"] if result.parser else []
    words += ["--build"] if result.parser and result.parser.built else []
    return join([*words, result.original, result.compressed])


def _compared(data: Mapping[str, Any]) -> dict[str, Any]:
    """What a report says of its data, as `check` takes it: nothing calibrates there."""
    return {**data, "options": {**(data.get("options") or {}), "calibrate": None}}


def of_sensitivity(document: SensitivityDocument) -> str:
    """`plan --sensitivity`, or `tune`; "" of a report of an earlier build, which does not say how it was made."""
    from gpusq_onnx.report.tuning import TuningDocument

    look = document.look
    if look is None:
        return ""
    goal = document.goal if isinstance(document, TuningDocument) else None
    words = ["gpusq-onnx", *(["plan", "--sensitivity"] if goal is None else ["tune"])]
    words += given_words(document.data, scores=goal is not None)
    words += ["--target", look.target] if look.target else []
    words += ["--forms", ",".join(look.forms)] if look.forms else []
    exact = len(document.sensitivity.losses) if look.exact is None else look.exact
    words += ["--images", str(look.images), "--exact", str(exact)]
    if goal is not None:
        given = {"--budget": goal.budget, "--at-most": goal.at_most, "--packed-size": goal.packed_size}
        words += [word for option, value in given.items() if value is not None for word in (option, value)]
        words += ["--measurements", str(goal.measurements)]
        lengths = {
            "--finetune": goal.finetune,
            "--finetune-steps": goal.finetune_steps,
            "--rounds": goal.rounds or None,
        }
        words += [word for option, value in lengths.items() if value is not None for word in (option, str(value))]
        words += ["--analysis-only"] if goal.recipe is None else ["-o", goal.recipe]
    return join([*words, document.model.path])


def run_words(outcome: Outcome) -> list[str]:
    """How a pipeline is planned and run, as options: `--target`, `--allow-noop`, `--no-canonical`."""
    words = ["--target", outcome.target] if outcome.target else []
    words += ["--allow-noop"] if outcome.allow_noop else []
    return words + ([] if outcome.canonical else ["--no-canonical"])
