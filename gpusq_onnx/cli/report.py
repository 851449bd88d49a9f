"""`gpusq-onnx report REPORT.json...`: the page drawn from what `--report` wrote, and from the models and data given."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from gpusq_onnx.cli.options import DataArgs, Quiet, Seed, writable
from gpusq_onnx.cli.spare import claim
from gpusq_onnx.marks import in_page


def report(
    reports: Annotated[
        list[Path],
        Argument(metavar="REPORT.json...", help="What --report wrote; one page of all.", show_default=False),
    ],
    data: DataArgs,
    models: Annotated[
        list[Path] | None,
        Option(
            "--model",
            metavar="FILE.onnx",
            show_default=False,
            help="Show it layer by layer beside the first one; repeatable. Default: the models of the reports.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        Option("--output", "-o", metavar="FILE.html", callback=writable, help="Default: the first report as .html."),
    ] = None,
    seed: Seed = None,
    quiet: Quiet = False,
) -> None:
    """Draw one self-contained HTML page: verdict, sizes, accuracy, layers, curves; with --data, where models look."""
    from gpusq_onnx.cli.console import show
    from gpusq_onnx.cli.progress import open_progress
    from gpusq_onnx.workflows.report import report as draw

    options = data.options(seed)
    page = output or reports[0].with_suffix(".html")
    claim([*reports, *(models or ())], {page: in_page})
    with open_progress(quiet=quiet) as progress:
        draw(
            reports,
            page,
            models=models or (),
            data=options if options.path is not None else None,
            progress=progress,
        )
    if not quiet:
        show(str(page))
