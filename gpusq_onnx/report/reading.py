"""Reports read back: which verb wrote a JSON document, its values as the verb's own types, and one page of several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from gpusq_onnx.errors import MACHINE, GpusqError, UsageError
from gpusq_onnx.parsing import parse_json, read_bytes
from gpusq_onnx.pipeline.outcome import Outcome
from gpusq_onnx.report.benchmark import Benchmark
from gpusq_onnx.report.blocks import Section
from gpusq_onnx.report.checking import CheckResult
from gpusq_onnx.report.page import of_run, render, require_page
from gpusq_onnx.report.page_check import of_bench, of_check, of_engine


def page_of(paths: Sequence[Path]) -> str:
    """One page of several reports, in their order.

    Raises:
        UsageError: a file that is not there, no JSON, or no report of a verb that has `--report`.
        EnvironmentLacking: the extra `report` is not installed.
    """
    require_page()
    sections: list[Section] = []
    title = ""
    for path in paths:
        document = _read(path)
        with _reading(path):
            sections += _sections(document, path)
            title = title or _title(document)
    with _reading(paths[0]):
        return render(title, sections)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Around whatever believes a document: parts of it are free in form, and no type says what a file holds there."""
    try:
        yield
    except (GpusqError, *MACHINE):
        raise
    except Exception as error:
        raise _not_ours(path, f"{type(error).__name__}: {error}") from error


def _read(path: Path) -> Mapping[str, Any]:
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


def _sections(document: Mapping[str, Any], path: Path) -> Iterator[Section]:
    try:
        if "steps" in document:
            return of_run(TypeAdapter(Outcome).validate_python(document))
        if "comparison" in document:
            return of_check(TypeAdapter(CheckResult).validate_python({**document, "artefacts": {}}))
        if {"backend", "rounds", "rows"} <= set(document):
            return of_bench(TypeAdapter(Benchmark).validate_python(document))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise _not_ours(path, f"{where}: {first['msg']}") from None
    if {"engine", "library", "sparsity", "weights", "failures"} <= set(document):
        return of_engine(document)
    raise _not_ours(path, f"keys {', '.join(sorted(document)[:8]) or 'none'}")


def _title(document: Mapping[str, Any]) -> str:
    output = document.get("output") or document.get("input") or {}
    return str(document.get("compressed") or document.get("model") or document.get("backend") or output.get("path"))


def _not_ours(path: Path, found: str) -> UsageError:
    return UsageError(
        "the file is no report that a page can be drawn from",
        where=str(path),
        expected="what --report FILE.json of apply, plan, check, build or bench wrote",
        found=found,
        hint="write it again with this version of gpusq-onnx",
    )
