"""Text in the width of a terminal: sentences and tables, folded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from operator import gt
from textwrap import wrap

from gpusq_onnx.text import printable

LEAST = 24  # columns for the last column's text where it has so much, before words are broken
TIGHT = 16  # and after
WIDEST = 26  # of all columns but the last
LONGEST = 200  # characters of a word in a table; of a longer one, such as a made name, the middle is left out
NARROWEST = 8  # of a column whose words are broken
GAP = 2
SPARSE, DENSE = r"\bsparse [A-Z]+\d+\b", r"\bdense [A-Z]+\d+\b"
MET, REFUSED = r"(?<=: )(?:met|accepted)\b", r"(?<=: )refused\b"
MISSED = r"\bNOT (?:MET|FOR DEPLOYMENT)\b"
"""Kernels and verdicts, which have a colour on a terminal and stay on one line."""
_KEPT = re.compile("|".join([r"^ *\d+ x$", SPARSE, DENSE, MISSED, f": {MET}", f": {REFUSED}"]))
_TOO_LONG = re.compile(rf"\S{{{LONGEST + 1},}}")
_TIE = "\N{NO-BREAK SPACE}"  # which no fold takes for a space


def columns(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Columns as wide as their cells, at most `WIDEST`, and the last one as wide as there is room; cells are folded.

    Words are broken where they are longer than `WIDEST`, or where the columns have no room otherwise; kernels and
    verdicts are one word. No rows, no lines.
    """
    if not rows:
        return []
    cells = [[_tied(_shortened(printable(cell))) for cell in row] for row in (header, *rows) if any(row)]
    natural = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    sizes = [min(WIDEST, size) for size in natural[:-1]]
    words = [max(len(word) for row in cells for word in row[column].split(" ")) for column in range(len(sizes))]
    for floors, last in ((words, LEAST), (words, TIGHT), ([min(NARROWEST, size) for size in sizes], TIGHT)):
        while sum(sizes) + GAP * len(sizes) + min(last, natural[-1]) > width and any(map(gt, sizes, floors)):
            widest = max(range(len(sizes)), key=lambda column: (sizes[column] > floors[column], sizes[column]))
            sizes[widest] -= 1
    sizes.append(max(min(NARROWEST, natural[-1]), width - sum(sizes) - GAP * len(sizes)))
    lines = []
    for row in cells:
        parts = [_wrapped(cell, size) for cell, size in zip(row, sizes, strict=True)]
        for level in range(max(map(len, parts))):
            texts = [part[level] if level < len(part) else "" for part in parts]
            line = (" " * GAP).join(text.ljust(size) for text, size in zip(texts, sizes, strict=True))
            lines.append(line.replace(_TIE, " ").rstrip())
    return lines


def unfolded(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their cells: a line each, for what reads lines."""
    cells = [[printable(cell) for cell in row] for row in (header, *rows)]
    sizes = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [(" " * GAP).join(cell.ljust(size) for cell, size in zip(row, sizes, strict=True)).rstrip() for row in cells]


def folded(text: str, width: int) -> list[str]:
    """A sentence on as many lines as it needs."""
    lines = wrap(_tied(printable(text)), max(LEAST, width), subsequent_indent="  ", break_on_hyphens=False)
    return [line.replace(_TIE, " ") for line in lines]


def within(lines: Iterable[str], most: int, more: str) -> list[str]:
    """The first lines; of more than `most`, how many are left out, and what shows them."""
    shown = list(lines)
    if len(shown) <= most:
        return shown
    return [*shown[: most - 1], f"  ... {len(shown) - most + 1} lines more: {more}"]


def fair(tables: Iterable[Sequence[str]], room: int, least: int = 3) -> int:
    """How many lines each table may take so that all together take `room`."""
    sizes = [len(table) for table in tables]
    return next((cap for cap in range(room, least, -1) if sum(min(cap, size) for size in sizes) <= room), least)


def _wrapped(text: str, width: int) -> list[str]:
    return wrap(text, width, break_on_hyphens=False) or [""]


def _shortened(text: str) -> str:
    """The text; of words that no table has room for, both ends."""
    half = (LONGEST - 1) // 2
    return _TOO_LONG.sub(lambda found: f"{found[0][:half]}…{found[0][-half:]}", text)


def _tied(text: str) -> str:
    """What has a colour on a terminal stays on one line."""
    return _KEPT.sub(lambda found: found[0].replace(" ", _TIE), text)
