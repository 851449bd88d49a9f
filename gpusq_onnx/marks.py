"""The mark of this tool in each kind of file that it writes, and whether a file has it: so its own are known again.

    report (JSON)   the key "tool"
    digest          a comment at the end of the Markdown
    recipe, log     the first line
    page            `<meta name="generator">`
    picture         the program in the metadata of PNG, SVG and PDF, a comment in JPEG

Models, packed files and engines need none: their metadata, their table of contents and the engine's card say it.
"""

from __future__ import annotations

from pathlib import Path

from gpusq_onnx import __version__
from gpusq_onnx.errors import UsageError
from gpusq_onnx.parsing import parse_json, read_bytes

TOOL = "gpusq-onnx"
AUTHOR = f"{TOOL} {__version__}"
JPEG_COMMENT = TOOL.encode()
_DIGEST = f"<!-- {TOOL} "
_PAGE = f'<meta name="generator" content="{TOOL} '
_PICTURE = tuple(start + TOOL.encode() for start in (b"Software\0", b"<dc:title>", b"/Creator (", b"\xff\xfe\0\x0c"))
_END = 1 << 16  # bytes at either end of a file, where a mark lies


def first_line(what: str) -> str:
    """The line that a recipe and a log begin with, as a comment."""
    return f"# {AUTHOR}: {what}\n"


def with_mark(digest: str) -> str:
    """Markdown with the mark, which no viewer shows."""
    return f"{digest}\n{_DIGEST}{__version__} -->\n"


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
    """Whether a file is such a digest. Raises OSError where it cannot be read."""
    return _DIGEST.encode() in _ends(path)


def in_first_line(path: Path) -> bool:
    """Whether a file is such a recipe or log. Raises OSError where it cannot be read."""
    return _ends(path).startswith(f"# {TOOL} ".encode())


def in_page(path: Path) -> bool:
    """Whether a file is a page of `report` or `cam`. Raises OSError where it cannot be read."""
    return _PAGE.encode() in _ends(path)


def in_picture(path: Path) -> bool:
    """Whether a file is a chart of `bench` or a picture of `cam`. Raises OSError where it cannot be read."""
    ends = _ends(path)
    return any(mark in ends for mark in _PICTURE)


def _ends(path: Path) -> bytes:
    """The beginning of a file, and its end."""
    with path.open("rb") as file:
        head = file.read(_END)
        size = file.seek(0, 2)
        file.seek(max(len(head), size - _END))
        return head + file.read()
