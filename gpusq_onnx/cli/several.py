"""One command for several models: each whole or not at all, one line each at the end, and the worst exit code.

What fails for one model is printed where it happens and keeps no other from its turn. A name with `*`, `?` or `[` that
no shell has replaced (it was quoted, or the shell is Windows's) means the files that it matches.
"""

from __future__ import annotations

import glob
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import typer

from gpusq_onnx.cli.failures import explain, reported
from gpusq_onnx.cli.journal import settings
from gpusq_onnx.cli.options import STDOUT, writable
from gpusq_onnx.errors import GpusqError, UsageError
from gpusq_onnx.text import printable

NO_REPORT = "--report and --json are about one model"


def matched(models: Sequence[Path]) -> list[Path]:
    """The models, patterns replaced, each once.

    Raises:
        UsageError: a pattern that matches nothing.
    """
    found: list[Path] = []
    for model in models:
        text = str(model)
        if model.exists() or not glob.has_magic(text):
            found.append(model)
            continue
        files = [Path(name) for name in sorted(glob.glob(text)) if Path(name).is_file()]
        if not files:
            raise UsageError("no file has such a name", where=text, hint="check the pattern")
        found += files
    return list(dict.fromkeys(found))


def targets(models: Sequence[Path], output: str | None, default: Callable[[Path], Path]) -> dict[Path, Path]:
    """Where the result of each model goes.

    Args:
        output: a file for one model; `DIR/`, or a folder that is there, for any number: `DIR/NAME`, the name that
            `default` gives, without its `.gpusq` where the folder is another than the model's.
        default: the place where nothing is said.

    Raises:
        UsageError: one file for several models, two models of one name, a place that cannot be written.
    """
    if output is None:
        return {model: default(model) for model in models}
    folder = output.endswith(("/", "\\")) or (output != str(STDOUT) and Path(output).is_dir())
    if not folder:
        if len(models) > 1:
            raise UsageError(
                f"{len(models)} models cannot all go into one file", where=f"-o {output}", hint="name a folder: -o DIR/"
            )
        path = writable(Path(output))
        assert path is not None
        return {models[0]: path}
    places = {model: Path(output) / _named(model, default(model), Path(output)) for model in models}
    taken: dict[Path, Path] = {}
    for model, place in places.items():
        writable(place)
        if place in taken:
            raise UsageError(
                "two models have the same name",
                where=str(place),
                found=f"{taken[place]} and {model}",
                hint="rename one",
            )
        taken[place] = model
    return places


def _in_a_line(error: Exception) -> str:
    said = explain(error)[0].splitlines()[0]
    found = error.details["found"] if isinstance(error, GpusqError) else None
    return said + (f" ({found})" if found else "")


def _named(model: Path, default: Path, folder: Path) -> str:
    """The model's own name, with the suffix of what is written; the default name in the model's folder."""
    return default.name if model.parent.resolve() == folder.resolve() else f"{model.stem}{default.suffix}"


def for_each(
    models: Sequence[Path],
    one: Callable[[Path, bool], str],
    *,
    quiet: bool,
    report: Path | None = None,
    json: Path | None = None,
) -> None:
    """Call `one(model, alone)` for each model; `alone` says that it may fill the screen.

    Args:
        one: does a model's work and returns what came of it in half a line.

    Raises:
        typer.Exit: with the worst exit code, where there are several; for one model, its error is raised as it is.
        UsageError: a report or JSON of several models.
    """
    if len(models) == 1:
        one(models[0], True)
        return
    if report is not None or json is not None:
        raise UsageError(NO_REPORT, found=f"{len(models)} models", hint="give them one at a time, or leave it out")
    rows: list[list[str]] = []
    worst = 0
    for number, model in enumerate(models, 1):
        turn = f"model {number} of {len(models)}: {printable(str(model))}"
        if not quiet:
            print(turn, file=sys.stderr)  # noqa: T201
        if journal := settings().journal:
            journal.write(turn)
        code = 0
        try:
            said = one(model, False)
        except Exception as error:
            code = reported(error)
            said = _in_a_line(error)
        rows.append([str(model), str(code), said])
        worst = max(worst, code)
    if not quiet:
        from gpusq_onnx.cli.console import show_table

        show_table(["model", "code", "result"], rows)
    if worst:
        raise typer.Exit(worst)
