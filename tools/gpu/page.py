"""What the steps found, as Markdown: a heading a section, the cards and versions first, failures with their last words.

    python -m tools.gpu.page out/gpu/results.json              # prints it
    python -m tools.gpu.page out/gpu/results.json docs/gpu.md  # puts it into docs/gpu.md, between its marks

A section without a result says so. Every figure is under the machine that it was measured on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gpusq_onnx.report.markdown import FENCE, assemble, table
from tools.bench.lines import line_table
from tools.gpu.plan import SECTIONS

NONE = "**No figures: no GPU was to be had so far.** Nothing of the GPU code has run on one."
MARKS = ("<!-- figures: python -m tools.gpu.page -->", "<!-- end of figures -->")
Records = Mapping[str, Mapping[str, Any]]

TITLES = dict(
    zip(
        SECTIONS,
        ("Exactness", "Linears", "Networks", "Compressed graphs", "Fine-tuning of ViT-Tiny", "pytest -m gpu"),
        strict=True,
    )
)


def page(found: Mapping[str, Any]) -> str:
    """The whole text of a results.json."""
    lines = ["# GPU results", "", *_machines(found["machines"]), "", *_all_steps(found["steps"])]
    for section, title in TITLES.items():
        records = {name: record for name, record in found["steps"].items() if record["section"] == section}
        lines += ["", f"## {title}", "", *(_TABLES[section](records) or ["No result yet."])]
        for name, record in records.items():
            if record["status"] in ("failed", "timed out"):
                words = [line for line in record["tail"].splitlines() if line.strip()][-12:]
                lines += ["", f"{name}: {record['status']}, {record['reason']}", "", FENCE, *words, FENCE]
    return assemble(lines)


def _machines(machines: list[Mapping[str, str]]) -> list[str]:
    return [f"- machine {number}: " + ", ".join(f"{k} {v}" for k, v in m.items()) for number, m in enumerate(machines)]


def _all_steps(records: Records) -> list[str]:
    rows = [
        [name, record["status"], f"{record['seconds']:.0f}" if "seconds" in record else "-", str(record["machine"])]
        for name, record in records.items()
    ]
    return table(["step", "ended", "seconds", "machine"], rows)


def _exact(records: Records) -> list[str]:
    rows, wrong = [], []
    for record in records.values():
        for way, cases in record.get("result", {}).items():
            differences = [case["difference"] for case in cases if "difference" in case]
            bad = [case for case in cases if case.get("ok") is False]
            refused = sorted({case["refused"] for case in cases if "refused" in case})
            worst = f"{max(differences):.3g}" if differences else "-"
            rows.append([way, str(len(differences)), str(len(bad)), worst, "; ".join(refused) or "-"])
            wrong += [f"- WRONG: {way}, {case['case']}: {case.get('reason', case.get('difference'))}" for case in bad]
    return [*table(["kernel", "cases", "wrong", "largest difference", "refused"], rows), *wrong] if rows else []


def _groups(records: Records) -> list[str]:
    lines: list[str] = []
    for name, record in records.items():
        if result := record.get("result"):
            facts = ", ".join(f"{key} {result['machine'].get(key, '-')}" for key in ("cuSPARSELt", "under load"))
            for line in result["lines"]:
                lines += ["", f"{line['title']} ({name}, machine {record['machine']}, {facts})", "", *line_table(line)]
    return lines[1:]


def _graphs(records: Records) -> list[str]:
    rows, notes = [], []
    for name, record in records.items():
        result = record.get("result") or {}
        for row in result.get("rows", ()):
            for batch, cell in row["cells"].items():
                speeds = (cell["against_reference"], cell["against_int8"])
                ratios = ["-" if speed is None else f"{speed:.2f}" for speed in speeds]
                rate = f"{int(batch) / cell['median']:,.0f}"
                rows.append([row["model"], row["format"], batch, f"{1e3 * cell['median']:.3f}", rate, *ratios])
        notes += [f"- {name}: {note}" for note in result.get("notes", ())]
    header = ["model", "format", "batch", "milliseconds", "images/s", "x TF32 (or FP32)", "x dense INT8"]
    return [*table(header, rows), *notes] if rows else []


def _tuning(records: Records) -> list[str]:
    rows = []
    for name, record in records.items():
        if not name.startswith("tune-") or "result" not in record:
            continue
        score = records.get(name.replace("tune-", "score-"), {}).get("result", {}).get("comparison", {})
        tops = [score.get(side, {}).get("top1") for side in ("reference_metrics", "candidate_metrics")]
        shown = ["-" if top is None else f"{top:.1%}" for top in tops]
        steps = ", ".join(f"{step['name']} {step['seconds'] / 60:.1f}" for step in record["result"]["steps"])
        rows.append([name.removeprefix("tune-"), *shown, f"{record['seconds'] / 60:.1f}", steps])
    header = ["recipe", "top-1 dense", "top-1", "minutes", "minutes of each pass"]
    return table(header, rows) if rows else []


def _tests(records: Records) -> list[str]:
    return [line for record in records.values() for line in (FENCE, *_last(record), FENCE)]


def _last(record: Mapping[str, Any]) -> Iterator[str]:
    yield from [line for line in record.get("tail", "").splitlines() if line.strip()][-20:]


_TABLES: dict[str, Callable[[Records], list[str]]] = {
    "exact": _exact,
    "linears": _groups,
    "networks": _groups,
    "graphs": _graphs,
    "tuning": _tuning,
    "tests": _tests,
}


def put_between_marks(text: str, figures: str) -> str:
    """`text` with `figures` between the marks. Raises ValueError where the marks are not there, each once."""
    begin, end = MARKS
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"the page has no place for figures: it needs {begin!r} and {end!r}, once each")
    before, rest = text.split(begin)
    return f"{before}{begin}\n\n{figures.strip()}\n\n{end}{rest.split(end)[1]}"


def main(arguments: list[str] | None = None) -> None:
    """Print the page, or put it between the marks of another, one level deeper."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu.page", description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="results.json")
    parser.add_argument("into", type=Path, nargs="?", help="a page with the marks; without: print")
    options = parser.parse_args(arguments)
    text = page(json.loads(options.results.read_text(encoding="utf-8")))
    if options.into is None:
        print(text)
        return
    figures = "\n".join(f"#{line}" if line.startswith("#") else line for line in text.splitlines()[1:])
    options.into.write_text(put_between_marks(options.into.read_text(encoding="utf-8"), figures), encoding="utf-8")


if __name__ == "__main__":
    main()
