"""What a page consists of: sections of blocks, as data. The template draws them; what fills them knows no HTML."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class FactList:
    """Names and values, one a line."""

    kind: ClassVar[str] = "facts"
    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Note:
    """A sentence; tone "", "good" or "bad"."""

    kind: ClassVar[str] = "note"
    text: str
    tone: str = ""


@dataclass(frozen=True)
class Picture:
    """An SVG element and what it shows; `folded`: opened by a click."""

    kind: ClassVar[str] = "picture"
    svg: str
    caption: str
    folded: bool = False


@dataclass(frozen=True)
class Card:
    """One number or word that is read first; tone "", "good" or "bad"."""

    name: str
    value: str
    more: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Cards:
    """Cards in a row."""

    kind: ClassVar[str] = "cards"
    cards: Sequence[Card]


@dataclass(frozen=True)
class Command:
    """A command line to copy."""

    kind: ClassVar[str] = "command"
    caption: str
    text: str


@dataclass(frozen=True)
class FoldedSection:
    """A cell that shows `short`, and `text` when it is opened."""

    short: str
    text: str


@dataclass(frozen=True)
class Table:
    """A table; `numbers` are the columns to align right; `folded`: opened by a click."""

    kind: ClassVar[str] = "table"
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | FoldedSection]]
    numbers: Collection[int] = ()
    folded: bool = False


@dataclass(frozen=True)
class Shot:
    """A picture of pixels.

    Attributes:
        source: a `data:` address.
        title, text: below it; tone "", "good" or "bad" colours the text.
    """

    source: str
    title: str
    text: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Gallery:
    """Pictures that belong together, side by side where there is room."""

    kind: ClassVar[str] = "gallery"
    title: str
    shots: Sequence[Shot]


Block = Cards | Command | FactList | Note | Picture | Table | Gallery


@dataclass(frozen=True)
class Section:
    """A heading and what is below it."""

    title: str
    blocks: Sequence[Block]


def number(value: Any, form: str = ".4g") -> str:
    """A number as text; None is a dash."""
    return "-" if value is None else format(value, form) if isinstance(value, (int, float)) else str(value)
