"""Text that came with a model, a file or a library, on its way to a terminal, a page or a log: text, and no commands.

What does not print (control characters, line ends, marks that turn the direction of writing, halves of characters) is
shown as its escape, so that a name can neither colour a terminal nor begin a line of its own.
"""

from __future__ import annotations

from collections.abc import Sequence


def printable(text: str) -> str:
    r"""The text on one line.

    >>> print(printable("fc1\x1b[31m\n::error::"))
    fc1\x1b[31m\n::error::
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def duration(seconds: float) -> str:
    """A length of time as a person says it.

    >>> duration(41.6), duration(754), duration(8000)
    ('42 s', '13 min', '2 h 13 min')
    """
    minutes = round(seconds / 60)
    if seconds < 99.5:
        return f"{max(0.0, seconds):.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def numbers(values: Sequence[float], between: str) -> str:
    """Values as short as they can be said: one where all are the same.

    >>> numbers([0.5, 0.5, 0.5], ","), numbers([0.485, 0.456, 0.406], ",")
    ('0.5', '0.485,0.456,0.406')
    """
    return between.join(f"{value:g}" for value in (values[:1] if len(set(values)) == 1 else values))


def expectation(message: str) -> str:
    """What pydantic's message asks for, without its own words around it.

    >>> expectation("Input should be 'crop' or 'stretch'"), expectation("Value error, std must be above 0")
    ("'crop' or 'stretch'", 'std must be above 0')
    """
    return message.removeprefix("Value error, ").removeprefix("Input should be ")


def block(text: str, margin: str = "") -> str:
    """Several lines, each printable, those after the first after `margin`."""
    return f"\n{margin}".join(map(printable, text.splitlines()))


def _escaped(char: str) -> str:
    if char in "\n\t\r":
        return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}[char]
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
