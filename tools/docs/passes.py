"""docs/passes.md from what `gpusq-onnx passes list` and `passes show` print as JSON."""

import io
import json
from collections.abc import Iterator
from contextlib import redirect_stdout
from typing import Any

from gpusq_onnx.cli import main

ORDER = (
    "prune24",
    "qdq-int8",
    "qdq-int4",
    "int4-weights",
    "distill",
    "qat",
    "fp16",
    "canonical",
    "fold",
)  # as a reader meets them; others follow

HEAD = """\
# Passes

Made from the code by `python -m tools.docs`: do not edit. The same in a terminal: `gpusq-onnx passes list` and
`gpusq-onnx passes show NAME`. How options are written: [commands](commands.md#pipelines). A list is written `[a;b]`.
"""


def page() -> str:
    """The page, as Markdown."""
    listing = _printed("passes", "list")
    ours = {entry["name"]: entry for entry in listing["passes"] if entry["distribution"] == "gpusq-onnx"}
    names = [*(name for name in ORDER if name in ours), *(name for name in ours if name not in ORDER)]
    return "\n".join([HEAD, *_presets(listing["presets"]), *(line for name in names for line in _section(name))])


def _presets(presets: list[dict[str, str]]) -> Iterator[str]:
    yield "## Presets\n"
    yield from _table(["preset", "summary"], [[f"`{p['name']}`", _cell(p["summary"])] for p in presets])
    yield from (f"`{p['name']}` is short for:\n\n```text\n{p['passes']}\n```\n" for p in presets)


def _section(name: str) -> Iterator[str]:
    shown = _printed("passes", "show", name)
    yield f"## {name}\n"
    summary = shown["summary"]
    yield f"{summary[0].upper()}{summary[1:]}. Version {shown['version']}; source: {shown['source']}.\n"
    rows = [
        [f"`{o['option']}`", f"`{_cell(o['takes'])}`", f"`{o['default']}`", _cell(o["meaning"])]
        for o in shown["options"]
    ]
    yield from _table(["option", "takes", "default", "meaning"], rows)


def _table(columns: list[str], rows: list[list[str]]) -> Iterator[str]:
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    yield from ("| " + " | ".join(row) + " |" for row in rows)
    yield ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _printed(*arguments: str) -> Any:
    out = io.StringIO()
    with redirect_stdout(out):
        code = main([*arguments, "--json", "-"])
    assert code == 0, (arguments, out.getvalue())
    return json.loads(out.getvalue())
