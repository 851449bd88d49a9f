"""Markdown that reads well as plain text, too: the digests are printed to terminals and shown by CI services.

Names come from models, paths from callers: `assemble` shows them as text. Of markup, what could reach beyond its line
or fetch something is escaped (HTML, links and images, code), and no more, since terminals show the escapes.
"""

from collections.abc import Iterable, Sequence

from gpusq_onnx.text import printable

FENCE = "```"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A pipe table, one line a row, columns padded to one width; `|` in a cell is escaped."""
    cells = [[printable(cell).replace("|", "\\|") for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    rule = " | ".join("-" * width for width in widths)
    return [f"| {line} |" for line in (lines[0], rule, *lines[1:])]


def assemble(lines: Iterable[str]) -> str:
    """The lines as a text; what a line holds stays on it and is text."""
    shown, fenced = [], False
    for line in map(printable, lines):
        fenced ^= line == FENCE
        shown.append(line if fenced or line == FENCE else _inert(line))
    return "\n".join(shown) + "\n"


def _inert(line: str) -> str:
    return line.replace("<", "\\<").replace("](", "]\\(").replace("`", "\\`")
