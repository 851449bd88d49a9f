"""The typer application: one command line in, an exit code out.

0 done · 1 a gate failed · 2 usage · 3 unsupported model or data · 4 our fault · 5 environment · 130 interrupted
"""

import sys
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Annotated

import typer

from gpusq_onnx import __version__
from gpusq_onnx.cli import apply, bench, build, cam, check, inspect, pack, passes, plan, report, tune
from gpusq_onnx.cli.failures import reported
from gpusq_onnx.cli.groups import SectionedCommand, grouped
from gpusq_onnx.cli.help import help_
from gpusq_onnx.cli.journal import one_call

INTERRUPTED = 130  # what typer makes of a KeyboardInterrupt

_HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
_VERB = {**_HELP, "allow_extra_args": True}  # SectionedCommand refuses them


def run(argv: Sequence[str] | None = None) -> int:
    """Run one command line (`sys.argv` when None) and return its exit code."""
    with warnings.catch_warnings(), one_call() as settings:
        if not sys.warnoptions:
            warnings.simplefilter("ignore")  # of libraries, about code and not about the model
        code = _run(argv)
        if settings.journal:
            settings.journal.write(f"ended with exit code {code}")
        return code


def _run(argv: Sequence[str] | None) -> int:
    try:
        _application()(args=None if argv is None else list(argv), prog_name="gpusq-onnx")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        return reported(error)
    return 0


def _application() -> typer.Typer:
    plain = partial(typer.Typer, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
    app = plain(context_settings=_HELP)
    app.callback()(grouped(_before_the_verb))
    working = (apply.apply, plan.plan, tune.tune, inspect.inspect, check.check, build.build, bench.bench)
    for verb in (*working, report.report, cam.cam, pack.pack, pack.unpack):
        app.command(cls=SectionedCommand, context_settings=_VERB)(grouped(verb))
    listing = plain(add_completion=False)
    listing.command("list", cls=SectionedCommand, context_settings=_VERB)(grouped(passes.list_passes))
    listing.command("show", cls=SectionedCommand, context_settings=_VERB)(grouped(passes.show))
    app.command("help")(help_)
    app.add_typer(listing, name="passes", help="List the passes and presets, or show one with its options.")
    return app


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gpusq-onnx {__version__}")
        raise typer.Exit


def _before_the_verb(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Make an exported vision transformer smaller and faster on TensorRT: 2:4 sparsity and INT8 QDQ, ONNX to ONNX.

    Exit codes: 0 done, 1 a gate failed, 2 usage, 3 unsupported model or data, 4 our fault, 5 environment,
    130 interrupted.
    """
