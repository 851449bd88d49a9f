"""A plan or a run as a fragment of HTML for a notebook: the totals, what each pass decided, and the warnings."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from gpusq_onnx.pipeline.outcome import Outcome
from gpusq_onnx.report.run import DECISIONS, TOTALS, decision_rows, total_rows
from gpusq_onnx.text import printable


def html_of(outcome: Outcome) -> str:
    """The fragment; all text in it is escaped, and it fetches nothing."""
    parts = [f"<p><b>{_text(outcome.input.path)}</b>: <code>{_text(outcome.pipeline)}</code></p>"]
    parts += [f"<p><b>warning</b>: {_text(warning)}</p>" for warning in outcome.warnings]
    parts.append(_table(TOTALS, total_rows(outcome)))
    rows = [[step.name, *row] for step in outcome.steps for row in decision_rows(step)]
    parts.append(_table(["pass", *DECISIONS], rows))
    return "\n".join(parts)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{_text(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _text(text: str) -> str:
    return escape(printable(text))
