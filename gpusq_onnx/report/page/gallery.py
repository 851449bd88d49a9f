"""The pictures of `cam`: as a section of the page, as a page of its own, as one picture, and as files.

Each example is a row: the image, then a picture for each model and method, with what the model sees below it.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from gpusq_onnx.data.encode import Pixels, encoded
from gpusq_onnx.marks import of_picture
from gpusq_onnx.report.page import overlay
from gpusq_onnx.report.page.activation import NAMES, Activations, ActivationView, Example
from gpusq_onnx.report.page.blocks import Block, Gallery, Note, Section, Shot, Table
from gpusq_onnx.report.page.html import render
from gpusq_onnx.report.preparation import counted, line

FORMATS = (".png", ".svg", ".pdf")
"""Of one picture."""

_APART = 0.5  # of maps that have little in common
_INCH = 2.0  # a picture's side


def section(found: Activations, few: Activations) -> Section:
    """The examples of `few`, after a table over all that were looked at."""
    return Section("Where the models look", list(_blocks(found, few)))


def page(found: Activations, few: Activations) -> str:
    """That section alone, as HTML."""
    return render(f"Where {', '.join(found.names)} look", [section(found, few)])


def pictures(few: Activations) -> dict[str, bytes]:
    """A JPEG file for each picture, by its name: example, model, method."""
    files = {}
    for number, example in enumerate(few.examples):
        stem = f"{number + 1:02}-{_plain(Path(example.name).stem)}"
        files[f"{stem}.jpg"] = encoded(example.pixels, "JPEG")
        for model, view in zip(few.names, example.views, strict=True):
            for method, pixels in _drawn(example, view):
                files[f"{stem}-{_plain(model)}-{method}.jpg"] = encoded(pixels, "JPEG")
    return files


def picture(few: Activations, suffix: str) -> bytes:
    """All examples on one picture, PNG, SVG or PDF."""
    from matplotlib.figure import Figure

    rows = [list(_row(few, example)) for example in few.examples]
    columns = max(len(row) for row in rows)
    figure = Figure(figsize=(_INCH * columns, (_INCH + 0.55) * len(rows)), layout="constrained")
    panels: Any = figure.subplots(len(rows), columns, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for line_of, row in zip(panels, rows, strict=True):
        for axes, (pixels, title, text, _) in zip(line_of, row, strict=False):
            axes.imshow(pixels)
            axes.set_title(f"{title}\n{text}".replace("$", r"\$"), fontsize=7)
    file = BytesIO()
    figure.savefig(file, format=suffix[1:], dpi=110, metadata=of_picture(suffix))
    return file.getvalue()


def _blocks(found: Activations, few: Activations) -> Iterator[Block]:
    samples = counted(found.data["samples"], found.data)
    yield Note("; ".join(filter(None, [samples, line(found.data)])))
    for warning in found.warnings:
        yield Note(f"warning: {warning}", "bad")
    for note in found.notes:
        yield Note(note)
    if len(found.models) > 1:
        yield Table("Agreement with the first model", found.header, found.summary(), range(1, len(found.header) - 1))
        yield Note(f"green: the first model's class, and a map that agrees with the first model's by {_APART} or more")
    for number, example in enumerate(few.examples):
        least = number < (len(few.examples) + 1) // 2
        which = "" if len(few.examples) == len(found.examples) else " (agrees least)" if least else " (agrees best)"
        said = f", maps agree {example.agreement:.3f}" if len(found.models) > 1 else ""
        shots = [Shot(_address(pixels), title, text, tone) for pixels, title, text, tone in _row(few, example)]
        yield Gallery(f"{example.name}{said}{which}", shots)


def _row(few: Activations, example: Example) -> Iterator[tuple[Pixels, str, str, str]]:
    """(pixels, title, text, tone) of the image and of each model's pictures."""
    yield example.pixels, "image", example.truth, ""
    drawn = [dict(_drawn(example, view)) for view in example.views]
    for method in drawn[0]:  # all models' pictures of one kind beside each other
        for place, (model, view) in enumerate(zip(few.names, example.views, strict=True)):
            if method not in drawn[place]:
                continue
            agreed = view.agreement.get(method)
            said = f"agrees {agreed:.2f}" if place and agreed is not None else ""
            tone = "" if not place else "bad" if not view.same or (agreed is not None and agreed < _APART) else "good"
            yield drawn[place][method], f"{model}: {NAMES[method]}", ", ".join(filter(None, [view.said, said])), tone


def _drawn(example: Example, view: ActivationView) -> Iterator[tuple[str, Pixels]]:
    """The pictures of one model, by what they show."""
    if view.mask is not None:
        yield "mask", overlay.classes(example.pixels, view.mask)
    if view.outline is not None:
        pixels = overlay.outlined(example.pixels, view.outline)
        yield "mask", pixels if view.box is None else overlay.boxed(pixels, view.box)
    for method, values in view.maps.items():
        pixels = overlay.heat(example.pixels, values)
        yield method, pixels if view.box is None else overlay.boxed(pixels, view.box)


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)[:80]


def _address(pixels: Pixels) -> str:
    return f"data:image/jpeg;base64,{b64encode(encoded(pixels, 'JPEG')).decode('ascii')}"
