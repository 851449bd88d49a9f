"""Text that came with a model, a file or a library, on its way to a terminal, a page or a log: text, and no commands.

What does not print (control characters, line ends, marks that turn the direction of writing, halves of characters) is
shown as its escape, so that a name can neither colour a terminal nor begin a line of its own.
"""

from __future__ import annotations


def printable(text: str) -> str:
    r"""The text on one line.

    >>> print(printable("fc1\x1b[31m\n::error::"))
    fc1\x1b[31m\n::error::
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def block(text: str, margin: str = "") -> str:
    """Several lines, each printable, those after the first after `margin`."""
    return f"\n{margin}".join(map(printable, text.splitlines()))


def _escaped(char: str) -> str:
    if char in "\n\t\r":
        return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}[char]
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
