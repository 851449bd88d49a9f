"""`gpusq-onnx report REPORT.json...`: the page drawn from what `--report` wrote."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from gpusq_onnx.cli.options import writable


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
    from gpusq_onnx.cli.console import show
    from gpusq_onnx.workflows.report import report as draw

    show(str(draw(reports, output)))
