"""What reaches the terminal: results on stdout, everything else on stderr. Progress is in `progress`.

Tables and screens are plain text, laid out by `report.columns`.
"""

import json
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpusq_onnx.cli.journal import settings
from gpusq_onnx.cli.options import STDOUT, digest_of
from gpusq_onnx.files import Staging, into, write_text
from gpusq_onnx.marks import with_mark
from gpusq_onnx.report.columns import DENSE, MET, MISSED, REFUSED, SPARSE, columns, unfolded
from gpusq_onnx.text import printable

if TYPE_CHECKING:
    from gpusq_onnx.report.sheet import Part

_RED, _GREEN, _YELLOW = 31, 32, 33
_COLOURS = ((SPARSE, _GREEN), (DENSE, _YELLOW), (MET, _GREEN), (MISSED, _RED), (REFUSED, _RED))
_UNUSUAL = re.compile(r"[^ -~\n]")


def show(text: str = "") -> None:
    """One line or more of the result, to stdout, as text without control characters.

    A reader that goes away (`| head`, a pager) does not end the work.
    """
    _print("\n".join(map(printable, text.split("\n"))))


def _print(text: str) -> None:
    try:
        print(text, flush=True)  # noqa: T201
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show_verdict(lines: Sequence[str]) -> None:
    """A screen of results; on a terminal kernels and verdicts in it are coloured, unless NO_COLOR says no."""
    plain = not sys.stdout.isatty() or bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    text = "\n".join(printable(line) for line in lines)
    if plain:
        show(text)
        return
    for pattern, colour in _COLOURS:
        text = re.sub(pattern, f"\x1b[{colour}m\\g<0>\x1b[0m", text)
    _print(text)


def show_sheet(parts: "Sequence[Part]", more: str | None = None) -> None:
    """A result in words; with `more`, as a screen, and `more` says what shows the rest of long tables."""
    from gpusq_onnx.report.sheet import screen

    show_verdict(screen(parts, width(), more))


def width() -> int:
    """Columns: the terminal's, or what $COLUMNS says; 80 in a pipe."""
    return shutil.get_terminal_size((80, 24)).columns


def warn(text: str) -> None:
    """A warning, to stderr: seen whatever `--quiet` and `--json` say."""
    line = f"warning: {printable(text)}"
    print(line, file=sys.stderr)  # noqa: T201
    if journal := settings().journal:
        journal.write(line)


def show_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table of a screen, folded to its width."""
    show("\n".join(columns(header, rows, width())))


def show_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table of everything. A terminal gets it folded to its width; a pipe gets each row on one line."""
    lines = columns(header, rows, width()) if sys.stdout.isatty() else unfolded(header, rows)
    show("\n".join(lines))


def write_json(document: Mapping[str, Any], target: Path, results: Staging | None = None) -> None:
    """The document as JSON into the file `target`, or to stdout for `-`."""
    text = json_text(document)
    if target == STDOUT:
        show(text)
    else:
        write_text(target, f"{text}\n", results)


def json_text(document: Mapping[str, Any]) -> str:
    """The document as JSON that any reader, viewer and terminal takes: what does not print is escaped."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    return _UNUSUAL.sub(lambda found: found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1], text)


def publish(
    document: Mapping[str, Any],
    digest: str,
    *,
    report: Path | None,
    json_target: Path | None,
    results: Staging | None = None,
) -> None:
    """Write what `--report` (JSON, and the digest beside it as Markdown) and `--json` ask for."""
    with into(results) as staging:
        if report:
            write_json(document, report, staging)
            write_text(digest_of(report), with_mark(digest), staging)
        if json_target:
            write_json(document, json_target, staging)
