"""Reports read back: which verb wrote a JSON document, its values as the verb's own types, and one page of several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from gpusq_onnx.errors import MACHINE, GpusqError, UsageError
from gpusq_onnx.parsing import parse_json, read_bytes
from gpusq_onnx.pipeline.outcome import Outcome
from gpusq_onnx.report.benchmark import Benchmark
from gpusq_onnx.report.checking import CheckResult
from gpusq_onnx.report.engine import EngineDocument
from gpusq_onnx.report.page.blocks import Section
from gpusq_onnx.report.page.cards import ModelFacts, Report, summary
from gpusq_onnx.report.page.check import of_bench, of_check, of_engine
from gpusq_onnx.report.page.html import render, require_page
from gpusq_onnx.report.page.run import of_run
from gpusq_onnx.report.page.tune import of_tune
from gpusq_onnx.report.tuning import SensitivityDocument, TuningDocument


def page_of(
    paths: Sequence[Path],
    more: Sequence[Section] = (),
    seen: ModelFacts = ModelFacts(),  # noqa: B008 - it is frozen
) -> str:
    """One page of several reports, in their order, after a summary of all.

    Args:
        more: sections about the models, which follow the summary.
        seen: what the models show; kernels that a plan predicts count where none were looked up.

    Raises:
        UsageError: a file that is not there, no JSON, or no report of a verb that has `--report`.
        EnvironmentLacking: the extra `report` is not installed.
    """
    require_page()
    reports, sections, title = list[Report](), list[Section](), ""
    for path in paths:
        document = _document(path)
        with _reading(path):
            reports.append(_typed(document, path))
            sections += _sections(reports[-1])
            title = title or _title(reports[-1])
    with _reading(paths[0]):
        seen = replace(seen, kernels=seen.kernels or _predicted(paths))
        return render(title, [summary(reports, seen), *more, *sections])


def reports_of(paths: Sequence[Path]) -> list[Report]:
    """What verbs reported. Raises as `page_of`."""
    return [_typed(_document(path), path) for path in paths]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Around whatever believes a document: parts of it are free in form, and no type says what a file holds there."""
    try:
        yield
    except (GpusqError, *MACHINE):
        raise
    except Exception as error:
        raise _not_ours(path, f"{type(error).__name__}: {error}") from error


def _document(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise UsageError("the report does not exist", where=str(path), hint="apply --report FILE.json writes one")
    if path.suffix == ".onnx":
        what = "a model is no report: a page is drawn from what --report wrote"
        raise UsageError(what, where=str(path), hint="gpusq-onnx inspect MODEL shows a model; apply --report FILE.json")
    try:
        document = parse_json(read_bytes(path).decode())
    except ValueError as error:
        raise UsageError("the report is no JSON", where=str(path), found=str(error)) from None
    if not isinstance(document, dict):
        raise _not_ours(path, f"a JSON {type(document).__name__}")
    return document


# What a document of each type has, and no other type has.
_KEYS: Mapping[type[Report], frozenset[str]] = {
    Outcome: frozenset({"steps"}),
    CheckResult: frozenset({"comparison"}),
    Benchmark: frozenset({"backend", "rounds", "rows"}),
    EngineDocument: frozenset({"engine", "weights"}),
    TuningDocument: frozenset({"sensitivity", "points"}),
    SensitivityDocument: frozenset({"sensitivity"}),  # after `TuningDocument`, which is one, too
}


def _typed(document: Mapping[str, Any], path: Path) -> Report:
    """The document as what its verb reports."""
    kind = next((kind for kind, keys in _KEYS.items() if keys <= set(document)), None)
    if kind is None:
        raise _not_ours(path, f"keys {', '.join(sorted(document)[:8]) or 'none'}")
    given = {**document, "artefacts": {}} if kind is CheckResult else document
    try:
        return TypeAdapter(kind).validate_python(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise _not_ours(path, f"{where}: {first['msg']}") from None


def _sections(report: Report) -> Iterator[Section]:
    if isinstance(report, Outcome):
        return of_run(report)
    if isinstance(report, CheckResult):
        return of_check(report)
    if isinstance(report, Benchmark):
        return of_bench(report)
    return of_engine(report) if isinstance(report, EngineDocument) else of_tune(report)


def _predicted(paths: Sequence[Path]) -> Mapping[str, int]:
    """What a plan among the reports predicts."""
    found = (document.get("predicted") for document in map(_document, paths))
    return next((kernels for kernels in found if isinstance(kernels, dict)), {})


def _title(report: Report) -> str:
    if isinstance(report, Outcome):
        named = (report.output or report.input).path
    elif isinstance(report, CheckResult):
        named = report.compressed
    elif isinstance(report, Benchmark):
        named = report.backend
    else:
        named = report.model if isinstance(report, EngineDocument) else report.model.path
    return Path(named).name


def _not_ours(path: Path, found: str) -> UsageError:
    return UsageError(
        "the file is no report that a page can be drawn from",
        where=str(path),
        expected="what --report FILE.json of apply, plan, tune, check, build or bench wrote",
        found=found,
        hint="write it again with this version of gpusq-onnx",
    )
