"""What an error prints, and its exit code: the one place where an exception becomes words.

Errors raised on purpose (`errors.GpusqError`) print what, where, expected, found and next. Anything else is a bug: a
short message that asks for `--debug`, which shows the traceback.
"""

from __future__ import annotations

import errno
import sys
import traceback

from gpusq_onnx.cli.journal import settings
from gpusq_onnx.errors import EnvironmentLacking, GpusqError, UsageError, of_the_machine
from gpusq_onnx.text import block, printable


def reported(error: Exception) -> int:
    """Print an error, with its traceback under `--debug` and in the journal; returns the exit code."""
    current = settings()
    if current.debug:
        traceback.print_exception(error)
    if current.journal:
        current.journal.write_error(error)
    text, code = explain(error)
    print(text, file=sys.stderr)  # noqa: T201
    return code


def explain(error: Exception) -> tuple[str, int]:
    """What to print for an error, and the exit code."""
    machine = of_the_machine(error)
    if isinstance(machine, OSError) and machine.errno in (errno.ENAMETOOLONG, errno.ELOOP):
        return f"{UsageError.title}: {printable(str(machine))}", UsageError.exit_code
    if isinstance(error, GpusqError) and not machine:
        return f"{error.title}: {error}", error.exit_code  # whose text is printable already
    if machine is not None:
        what = "not enough memory" if isinstance(machine, MemoryError) else printable(str(machine))
        return f"{EnvironmentLacking.title}: {what}", EnvironmentLacking.exit_code
    text = f"{GpusqError.title}: {type(error).__name__}: {block(str(error), '    ')}"
    hint = "this is a defect of gpusq-onnx; run the command again with --debug and report the traceback"
    return f"{text}\n  next: {hint}", GpusqError.exit_code
