"""`report`: one self-contained HTML page drawn from what `--report` wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gpusq_onnx.errors import UsageError
from gpusq_onnx.files import write_text
from gpusq_onnx.report.reading import page_of


def report(reports: Sequence[Path], output: Path | None = None) -> Path:
    """Draw the page of all reports, in their order; returns where it is.

    Args:
        output: None: the first report's name with the suffix .html.

    Raises:
        UsageError: a file that is not there or is no report, or a page that would overwrite one.
        EnvironmentLacking: the extra `report` is not installed.
    """
    page = output or reports[0].with_suffix(".html")
    if page.resolve() in {path.resolve() for path in reports}:
        raise UsageError("the page would overwrite a report", where=str(page), hint="name another file with -o")
    write_text(page, page_of(reports))
    return page
