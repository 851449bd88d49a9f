"""What an error prints, and its exit code: the one place where an exception becomes words.

Errors raised on purpose (`errors.GpusqError`) print what, where, expected, found and next. Anything else is a bug: a
short message that asks for `--debug`, which shows the traceback.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from gpusq_onnx.cli.journal import settings
from gpusq_onnx.errors import EnvironmentLacking, GpusqError, UsageError, of_the_machine
from gpusq_onnx.text import block, printable

_PRINTING = (("cli", "console.py"), ("click", "utils.py"), ("_click", "utils.py"))
"""The ends of the paths of the code that prints."""
_NAMES = {
    errno.ENAMETOOLONG: ("the name of a file is too long", "give a shorter name"),
    errno.ELOOP: ("links lead back to themselves", "name the file that is meant"),
}
"""Errors of the operating system that are the caller's, and what to do."""


def reported(error: Exception) -> int:
    """Print an error, with its traceback under `--debug` and in the journal; returns the exit code."""
    current = settings()
    if current.debug:
        traceback.print_exception(error)
    if current.journal:
        try:
            current.journal.write_error(error)
        except OSError:  # the log is what cannot be written, and the error below says so, or both are on one disk
            current.journal = None
    text, code = explain(error)
    print(text, file=sys.stderr)  # noqa: T201
    return code


def mistyped(error: Any) -> int:
    """Print typer's error of usage as one of ours, or the help where nothing was asked for; returns the exit code."""
    said = error.format_message()
    if said.startswith("Usage:"):
        print(said, file=sys.stderr)  # noqa: T201
        return UsageError.exit_code
    what, _, more = said.partition(". ")
    command = error.ctx.command_path if error.ctx else "gpusq-onnx"
    hint = f"see {command} --help"
    name = getattr(error, "option_name", None)
    if name and error.ctx:
        from gpusq_onnx.pipeline.grammar import did_you_mean

        what, more = what.partition(" (")[0], ""
        valid = [option for one in error.ctx.command.get_params(error.ctx) for option in one.opts]
        hint = did_you_mean(name, [option for option in valid if option.startswith("--")]) or hint
    elif more.startswith("Did you mean"):
        hint, more = "d" + more[1:], ""
    what = f"{what[0].lower()}{what[1:].rstrip('.')}".replace("Input should be", "must be")
    return reported(UsageError(what, where=command, expected=more or None, hint=hint))


def explain(error: Exception) -> tuple[str, int]:
    """What to print for an error, and the exit code."""
    machine = of_the_machine(error)
    if isinstance(machine, OSError) and machine.errno in _NAMES:
        what, hint = _NAMES[machine.errno]
        where = None if machine.filename is None else os.fsdecode(machine.filename)
        misnamed = UsageError(what, where=where, hint=hint)
        return f"{misnamed.title}: {misnamed}", misnamed.exit_code
    if isinstance(error, GpusqError) and not machine:
        return f"{error.title}: {error}", error.exit_code  # whose text is printable already
    if isinstance(machine, OSError):
        lacking = _of_the_system(machine)
        return f"{lacking.title}: {lacking}", lacking.exit_code
    if machine is not None:
        what = "not enough memory" if isinstance(machine, MemoryError) else printable(str(machine))
        return f"{EnvironmentLacking.title}: {what}", EnvironmentLacking.exit_code
    text = f"{GpusqError.title}: {type(error).__name__}: {block(str(error), '    ')}"
    hint = "this is a defect of gpusq-onnx; run the command again with --debug and report the traceback"
    return f"{text}\n  next: {hint}", GpusqError.exit_code


def _of_the_system(error: OSError) -> EnvironmentLacking:
    """An error of the operating system, its place as the user knows it, whatever scratch name it has."""
    import tempfile  # late, as what imports it: `--help` needs neither

    from gpusq_onnx.scratch import PREFIX

    frames = traceback.extract_tb(error.__traceback__)
    raised_in = Path(frames[-1].filename).parts[-2:] if frames else ()
    if error.filename is None and raised_in in _PRINTING:
        return EnvironmentLacking.of_the_system(error, "standard output", hint="send it to a place that has room")
    if raised_in == ("cli", "journal.py"):
        return EnvironmentLacking.of_the_system(error, "--log-file", hint="name a log in another place")
    if not isinstance(error.filename, (str, bytes)):
        by_numpy = type(error) is OSError and error.errno is None  # it wrote fewer bytes than it was to
        return EnvironmentLacking.of_the_system(error, hint="see whether the disk is full" if by_numpy else None)
    path = Path(os.fsdecode(error.filename))
    above = next((folder for folder in (path, *path.parents) if folder.name.startswith(PREFIX)), None)
    if above is None:
        return EnvironmentLacking.of_the_system(error)
    if tempfile.tempdir and above.parent == Path(tempfile.tempdir):  # gettempdir() may be what has failed
        hint = "free some room there, or set TMPDIR to another folder"
        return EnvironmentLacking.of_the_system(error, f"temporary files, in {above.parent}", hint=hint)
    return EnvironmentLacking.of_the_system(error, str(above.parent / "".join(path.relative_to(above).parts[:1])))
