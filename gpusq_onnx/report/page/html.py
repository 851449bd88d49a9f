"""Reports as one HTML page: self-contained, nothing loaded from elsewhere, the same bytes for the same JSON.

A page is sections of blocks (`blocks`), which the template draws. Its one script sorts tables and opens what is folded
for printing; the page's content security policy names that script by its hash and forbids every other, and every
address that is not the page's own. Text is escaped by the template, never here. Needs the extra `report` (jinja2,
matplotlib).
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from importlib.resources import files
from importlib.util import find_spec

from gpusq_onnx.errors import EnvironmentLacking
from gpusq_onnx.marks import AUTHOR
from gpusq_onnx.report.page.blocks import Section


def require_page() -> None:
    """Raises EnvironmentLacking unless the libraries of the page are installed."""
    missing = [name for name in ("jinja2", "matplotlib") if find_spec(name) is None]
    if missing:
        raise EnvironmentLacking(f"a page needs {' and '.join(missing)}", hint="pip install 'gpusq-onnx[report]'")


def render(title: str, sections: Sequence[Section]) -> str:
    """The page."""
    require_page()
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    script = _part("page.js")
    return environment.from_string(_part("page.html.jinja")).render(
        title=title,
        sections=sections,
        author=AUTHOR,
        style=_part("page.css"),
        script=script,
        script_hash=b64encode(sha256(script.encode()).digest()).decode("ascii"),
    )


def _part(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8").strip()
