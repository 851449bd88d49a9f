"""Tables 5 and 6 as quotations of docs/benchmarks.md, where their numbers live: the table under a heading."""

from __future__ import annotations

from gpusq_onnx.report.markdown import table
from tools.zoo.exports import ROOT

BENCHMARKS = ROOT / "docs" / "benchmarks.md"


def label_free() -> list[str]:
    """Table 5's rows: everything that was trained without labels."""
    header, *rows = rows_of(_text(), "## Trained without labels, the same ViT-Tiny")
    return table(header, rows)


def four_bits() -> list[str]:
    """What there is at four bits: weights in four, data in eight, neither pruned nor trained."""
    header, *rows = rows_of(_text(), "### Four bits, and FP8")
    return table(header, [row for row in rows if row[0].startswith("`qdq-int4`")])


def ablation() -> list[str]:
    """Table 6's rows, at INT8 and at INT4."""
    header, *rows = rows_of(_text(), "## The paper's Table 6")
    return table(header, rows)


def _text() -> str:
    return BENCHMARKS.read_text(encoding="utf-8")


def rows_of(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table after a heading, the header first, without the rule.

    Raises:
        ValueError: the heading is not there, or no table follows before the next one.
    """
    lines = text.splitlines()
    if heading not in lines:
        raise ValueError(f"docs/benchmarks.md has no heading {heading!r}")
    found: list[list[str]] = []
    for line in lines[lines.index(heading) + 1 :]:
        if line.startswith("#"):
            break
        if line.startswith("|"):
            found.append([cell.strip() for cell in line.strip("|").split("|")])
        elif found:
            break
    if not found:
        raise ValueError(f"docs/benchmarks.md has no table under {heading!r}")
    return [found[0], *found[2:]]
