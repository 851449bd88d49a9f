"""The commands that make a report's result again, from what the report says: pipeline, data options, gates, files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from shlex import join
from typing import Any

from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.pipeline.outcome import Outcome
from gpusq_onnx.report.checking import CheckResult

_NAMES = {"path": "data", "preset": "data-preset"}
_APART = ("crop_ratio", "seed")  # a key of files only, and an option of its own


def of_run(outcome: Outcome) -> str:
    """`apply`, or `plan`."""
    words = ["gpusq-onnx", "apply" if outcome.output else "plan", "--passes", outcome.pipeline]
    words += data_words((outcome.data or {}).get("options") or {}, outcome.seed)
    words += ["-o", outcome.output.path] if outcome.output else []
    return join([*words, outcome.input.path])


def of_check(result: CheckResult) -> str:
    """`check` with its gates."""
    options = result.data.get("options") or {}
    words = ["gpusq-onnx", "check", *data_words(options, options.get("seed", 0))]
    for name, value in asdict(result.gates).items():
        words += [] if value is None else [f"--{name.replace('_', '-')}", f"{value:g}"]
    words += ["--on", result.runtime] if result.runtime != "cpu" and result.compressed.endswith(".onnx") else []
    words += ["--parser"] if result.parser else []
    return join([*words, result.original, result.compressed])


def data_words(options: Mapping[str, Any], seed: int) -> Iterator[str]:
    """Of `DataOptions.echo`: the options, and the seed, that are not as they are by default."""
    default = DataOptions.from_values({}).echo()
    for key, value in options.items():
        if value is None or value == default.get(key) or key in _APART:
            continue
        yield f"--{_NAMES.get(key, key.replace('_', '-'))}"
        if isinstance(value, list):
            yield ",".join(f"{number:g}" for number in (value[:1] if len(set(value)) == 1 else value))
        elif value is not True:
            yield str(value)
    if seed:
        yield from ("--seed", str(seed))
