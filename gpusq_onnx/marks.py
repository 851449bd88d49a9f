"""The mark of this tool in each kind of file that it writes, and whether a file has it: so its own are known again.

    report (JSON)   the key "tool"
    digest          a comment at the end of the Markdown, with a sum of what is before it
    recipe, log     the first line; a recipe's has a sum of the text that follows
    page            `<meta name="generator">`
    picture         the program in the metadata of PNG, SVG and PDF, a comment in JPEG

A digest or a recipe that somebody has edited does not have its sum any more, and counts as theirs.

Models, packed files and engines need none: their metadata, their table of contents and the engine's card say it.
"""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import Path

from gpusq_onnx import __version__
from gpusq_onnx.errors import UsageError
from gpusq_onnx.parsing import parse_json, read_bytes

TOOL = "gpusq-onnx"
METADATA = "pkg.gpusq_onnx."  # what keys in a model's metadata begin with
AUTHOR = f"{TOOL} {__version__}"
JPEG_COMMENT = TOOL.encode()
_DIGEST = f"<!-- {TOOL} "
_PAGE = f'<meta name="generator" content="{TOOL} '
_PICTURE = tuple(start + TOOL.encode() for start in (b"Software\0", b"<dc:title>", b"/Creator (", b"\xff\xfe\0\x0c"))
_SUM = re.compile(rb"\[(sha256:[0-9a-f]{16})\]")
_END = 1 << 16  # bytes at either end of a file, where a mark lies


def first_line(what: str, rest: str | None = None) -> str:
    """The comment that a recipe and a log begin with; `rest`: the text that follows, where it is not to be edited."""
    return f"# {AUTHOR}: {what}\n" if rest is None else f"# {AUTHOR}: {what} [{_sum(rest.encode())}]\n"


def with_mark(digest: str) -> str:
    """Markdown with the mark, which no viewer shows."""
    text = f"{digest}\n"
    return f"{text}{_DIGEST}{__version__} [{_sum(text.encode())}] -->\n"


def of_picture(suffix: str) -> dict[str, str | None]:
    """The metadata that matplotlib is to write into a `.png`, `.svg` or `.pdf`: the program, and no time."""
    if suffix == ".png":
        return {"Software": AUTHOR}
    return {"Creator": AUTHOR, "Date" if suffix == ".svg" else "CreationDate": None}


def in_json(path: Path) -> bool:
    """Whether a file is JSON that a verb of this tool wrote. Raises OSError where it cannot be read."""
    try:
        document = parse_json(read_bytes(path))
    except (ValueError, UsageError):
        return False
    return isinstance(document, dict) and str(document.get("tool")).startswith(f"{TOOL} ")


def in_digest(path: Path) -> bool:
    """Whether a file is such a digest, as it was written. Raises OSError where it cannot be read."""
    text, mark, end = path.read_bytes().rpartition(_DIGEST.encode())
    return bool(mark) and _unedited(end, text)


def in_first_line(path: Path) -> bool:
    """Whether a file is such a log, or a recipe as it was written. Raises OSError where it cannot be read."""
    if not _ends(path).startswith(f"# {TOOL} ".encode()):
        return False
    with path.open("rb") as file:
        first = file.readline(_END)
        return _SUM.search(first) is None or _unedited(first, file.read())


def in_page(path: Path) -> bool:
    """Whether a file is a page of `report` or `cam`. Raises OSError where it cannot be read."""
    return _PAGE.encode() in _ends(path)


def in_picture(path: Path) -> bool:
    """Whether a file is a chart of `bench` or a picture of `cam`. Raises OSError where it cannot be read."""
    ends = _ends(path)
    return any(mark in ends for mark in _PICTURE)


def _sum(text: bytes) -> str:
    return f"sha256:{sha256(text).hexdigest()[:16]}"


def _unedited(mark: bytes, text: bytes) -> bool:
    """Whether the text has the sum that the mark gives, if it gives one: the marks of before had none."""
    found = _SUM.search(mark)
    return found is None or found[1].decode() == _sum(text)


def _ends(path: Path) -> bytes:
    """The beginning of a file, and its end."""
    with path.open("rb") as file:
        head = file.read(_END)
        size = file.seek(0, 2)
        file.seek(max(len(head), size - _END))
        return head + file.read()
