"""A result in words, said once and shown in two ways: as a screen on a terminal, as Markdown in files and CI services.

- `Heading`: what the result is of, or a part of it
- `Answer`: what came of it, the first thing to read
- `Line`: a sentence; `Item`: a sentence among others of its kind
- `Grid`: a table; on a screen folded to the width, and cut where it would fill more than the screen
- `Commands`: lines to copy
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gpusq_onnx.report.columns import columns, fair, folded, within
from gpusq_onnx.report.markdown import FENCE, assemble, table

SCREEN = 56  # lines
LEAST = 5  # of a table that is cut


@dataclass(frozen=True)
class Heading:
    """The title; with `level` 2 that of a part."""

    text: str
    level: int = 1


@dataclass(frozen=True)
class Answer:
    """What came of it."""

    text: str


@dataclass(frozen=True)
class Line:
    """A sentence by itself."""

    text: str


@dataclass(frozen=True)
class Item:
    """A sentence in a list."""

    text: str


@dataclass(frozen=True)
class Grid:
    """A table of texts; a column without any entry is not shown."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Commands:
    """Lines to copy, and what they do."""

    caption: str
    lines: Sequence[str]


Part = Heading | Answer | Line | Item | Grid | Commands


def markdown(parts: Iterable[Part]) -> str:
    """For a file, a CI service's summary, and `str` of a result."""
    lines: list[str] = []
    before: Part | None = None
    for part in parts:
        if before is not None and not (isinstance(part, Item) and isinstance(before, Item)):
            lines.append("")
        lines += _marked(part)
        before = part
    return assemble(lines)


def screen(parts: Sequence[Part], width: int, more: str | None = None) -> list[str]:
    """For a terminal of `width` columns.

    Args:
        more: what shows the lines of long tables that are left out; None: all are here.
    """
    drawn = {place: _drawn(part, width) for place, part in enumerate(parts)}
    grids = [place for place, part in enumerate(parts) if isinstance(part, Grid)]
    rest = sum(len(lines) for place, lines in drawn.items() if place not in grids)
    cap = fair([drawn[place] for place in grids], max(LEAST, SCREEN - rest - len(parts)), LEAST)
    lines: list[str] = []
    before: Part | None = None
    for place, part in enumerate(parts):
        if before is not None and _apart(before, part):
            lines.append("")
        lines += within(drawn[place], cap, more) if more and place in grids else drawn[place]
        before = part
    return lines


def _apart(before: Part, part: Part) -> bool:
    """Whether a blank line parts them on a screen."""
    if isinstance(before, Heading):
        return isinstance(part, Grid) and before.level == 1
    if isinstance(before, Line) and isinstance(part, Grid):
        return not before.text.endswith(":")
    alone = isinstance(part, Line) and isinstance(before, Item)
    return alone or isinstance(part, Heading | Grid | Commands) or isinstance(before, Grid | Commands)


def _marked(part: Part) -> list[str]:
    match part:
        case Heading(text, level):
            return [f"{'#' * level} {text}"]
        case Answer(text):
            return [f"**{text}**"]
        case Line(text):
            return [text]
        case Item(text):
            return [f"- {text}"]
        case Grid(header, rows):
            return table(*_filled(header, rows)) if rows else ["(none)"]
        case Commands(caption, lines):
            return [f"{caption}:", "", FENCE, *lines, FENCE]


def _drawn(part: Part, width: int) -> list[str]:
    match part:
        case Heading(text, 1) | Answer(text) | Line(text) | Item(text):
            return folded(text, width)
        case Heading(text):
            return folded(f"{text}:", width)
        case Grid(header, rows):
            return columns(*_filled(header, rows), width)
        case Commands(caption, lines):
            return [*folded(f"{caption}:", width), *(f"  {line}" for line in lines)]


def _filled(header: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """The columns that say anything."""
    kept = [place for place in range(len(header)) if any(row[place] for row in rows) or not rows]
    return [header[place] for place in kept], [[row[place] for place in kept] for row in rows]
