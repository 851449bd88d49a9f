"""The documents as data: which pages there are, their code blocks, commands, links and headings."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs").rglob("*.md")))

_FENCE = re.compile(r"^( *)```(\w*)(?: title=\"([^\"]*)\")?\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


class Block(NamedTuple):
    """A fenced block of code: its language, its title ("" without one), and its text."""

    language: str
    title: str
    text: str


def blocks(page: Path) -> list[Block]:
    """The code blocks of a page, in order."""
    found = _FENCE.findall(page.read_text(encoding="utf-8"))
    return [Block(language, title, text) for _, language, title, text in found]


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def commands(page: Path) -> list[str]:
    """The lines of the `bash` blocks, without their comments: what the tests run."""
    text = "".join(block.text for block in blocks(page) if block.language == "bash")
    return [line.split(" #")[0].strip() for line in text.splitlines() if line]


def shown(page: Path) -> list[list[str]]:
    """Every command of ours on a page, as words, those of transcripts (`$ gpusq-onnx …`) too."""
    lines = [line.strip().removeprefix("$ ") for block in blocks(page) for line in block.text.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("gpusq-onnx ")]


def links(page: Path) -> list[str]:
    """The targets of a page's links and pictures, those to other sites aside."""
    return [target for target in _LINK.findall(prose(page)) if not target.startswith(("http://", "https://"))]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs both make them."""
    return {anchor(heading) for heading in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)}


def anchor(heading: str) -> str:
    """The anchor of one heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
