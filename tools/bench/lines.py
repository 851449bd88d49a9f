"""A timed group, formats side by side, as Markdown: for the benchmark that timed it and for the pages that show it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpusq_onnx.report.markdown import table


def line_table(line: Mapping[str, Any]) -> list[str]:
    """One timed group as Markdown: a row a format."""
    keys = [key for key in next(iter(line["rows"].values())) if key != "samples"]
    cells = [[name, *(_cell(key, row[key]) for key in keys)] for name, row in line["rows"].items()]
    return table(["format", *keys], cells)


def _cell(key: str, value: float) -> str:
    if key == "spread":
        return f"{value:.1%}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
