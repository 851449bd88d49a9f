"""`gpusq-onnx report REPORT.json...`: the page drawn from what `--report` wrote."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from gpusq_onnx.cli.options import writable
from gpusq_onnx.errors import UsageError


def report(
    reports: Annotated[
        list[Path],
        Argument(metavar="REPORT.json...", help="What --report wrote; one page of all.", show_default=False),
    ],
    output: Annotated[
        Path | None,
        Option("--output", "-o", metavar="FILE.html", callback=writable, help="Default: the first report as .html."),
    ] = None,
) -> None:
    """Draw one self-contained HTML page from reports: weights, totals, accuracy, training curves."""
    from gpusq_onnx.cli.console import write_text
    from gpusq_onnx.report.reading import page_of

    page = output or reports[0].with_suffix(".html")
    if page.resolve() in {path.resolve() for path in reports}:
        raise UsageError("the page would overwrite a report", where=str(page), hint="name another file with -o")
    write_text(page, page_of(reports))
