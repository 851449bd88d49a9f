"""The commands that make a report's result again, from what the report says: pipeline, data options, gates, files."""

from __future__ import annotations

from dataclasses import asdict
from shlex import join

from gpusq_onnx.pipeline.outcome import Outcome
from gpusq_onnx.report.checking import CheckResult
from gpusq_onnx.report.preparation import data_words, given_words


def of_run(outcome: Outcome) -> str:
    """`apply`, or `plan`."""
    words = ["gpusq-onnx", "apply" if outcome.output else "plan", "--passes", outcome.pipeline]
    words += data_words((outcome.data or {}).get("options") or {}, outcome.seed)
    words += ["-o", outcome.output.path] if outcome.output else []
    return join([*words, outcome.input.path])


def of_check(result: CheckResult) -> str:
    """`check` with its gates."""
    words = ["gpusq-onnx", "check", *given_words(result.data)]
    for name, value in asdict(result.gates).items():
        words += [] if value is None else [f"--{name.replace('_', '-')}", f"{value:g}"]
    words += ["--on", result.runtime] if result.runtime != "cpu" and result.compressed.endswith(".onnx") else []
    words += ["--parser"] if result.parser else []
    return join([*words, result.original, result.compressed])
