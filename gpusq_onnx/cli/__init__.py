"""The command line: typer and rich, and nothing that a library user would miss.

`main` is the entry point `gpusq-onnx`. Verbs live one a file and import their work inside the function that does it, so
that `--help` needs typer alone (tested; `python -m tools.bench` takes its time).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from gpusq_onnx.cli.interrupts import all_done, heard

__all__ = ["main"]

INTERRUPTED = "interrupted; no file was left half-written"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (`sys.argv` when None) and return its exit code; signals count from the first import on."""
    with heard() as signals:
        try:
            _prepare()
            from gpusq_onnx.cli.app import run

            code = run(argv)
            _settle()
        except BaseException as error:
            if not signals.number and not isinstance(error, KeyboardInterrupt):
                raise
            code = signals.exit_code
        if signals.number and code:
            code = signals.exit_code
        if (signals.number and code) or code == 130:
            print(INTERRUPTED, file=sys.stderr)  # noqa: T201
    if argv is None:  # the process's own command
        all_done(code)
    return code


def _settle() -> None:
    """What stdout did not take, as an error has said, is not to fail once more when the process ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _prepare() -> None:
    """Streams that take any text, or nothing at all, and no telemetry from onnxruntime."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime reads it while it is imported
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - for the rest of the process
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
