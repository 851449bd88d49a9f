"""The typer application: one command line in, an exit code out.

0 done · 1 a gate failed · 2 usage · 3 unsupported model or data · 4 our fault · 5 environment · 130 interrupted
"""

import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from shlex import join
from typing import Annotated

import typer

from gpusq_onnx import __version__
from gpusq_onnx.cli.failures import mistyped, reported
from gpusq_onnx.cli.groups import grouped
from gpusq_onnx.cli.journal import one_call
from gpusq_onnx.cli.verbs import HELP, Verbs, plain
from gpusq_onnx.errors import of_an_interrupt
from gpusq_onnx.wording import as_options

INTERRUPTED = 130  # what typer makes of a KeyboardInterrupt
_Mistyped = typer.BadParameter.__mro__[1]  # the base of typer's errors of usage, which has no public name


def run(argv: Sequence[str] | None = None) -> int:
    """Run one command line (`sys.argv` when None) and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    with warnings.catch_warnings(), one_call(join(["gpusq-onnx", *words])) as settings, as_options():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")  # of libraries, about code and not about the model
        code = _run(words)
        if settings.journal:
            with suppress(OSError):  # a full disk was an error of the command already, or the line is the only loss
                settings.journal.write(f"ended with exit code {code}")
        return code


def _run(words: Sequence[str]) -> int:
    try:
        code = _application()(args=list(words), prog_name="gpusq-onnx", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if of_an_interrupt(error):
            return INTERRUPTED
        return mistyped(error) if isinstance(error, _Mistyped) else reported(error)


def _application() -> typer.Typer:
    app = plain(cls=Verbs, context_settings=HELP)
    app.callback()(grouped(_before_the_verb))
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
