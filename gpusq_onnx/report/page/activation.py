"""What `cam` found: for each example what each model sees and where it looks, as data, as text and as pictures.

Agreement of a model with the first is the correlation of their maps over the image's pixels (Pearson), -1 to 1; two
empty maps agree, an empty one and another have nothing in common. Examples are in order of it, the least first.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.marks import AUTHOR
from gpusq_onnx.report.preparation import counted, line
from gpusq_onnx.report.sheet import Grid, Heading, Item, Line, Part, markdown
from gpusq_onnx.tasks.classification import cosine

NAMES = {"gradcam": "Grad-CAM", "rollout": "attention roll-out", "mask": "mask"}
"""Names of the pictures, by their keys."""


@dataclass(frozen=True)
class ActivationView:
    """One model's view of an example.

    Attributes:
        label: the class that it sees, by name or number; "" where no class was asked for.
        probability: of that class.
        same: whether it is the first model's class.
        maps: by method, float32[H, W] over the image's pixels, 0 to 1.
        agreement: with the first model's map, by method; the first model's own is 1. Of outlines, "mask": their
            intersection over union.
        box: of a detector's query: x0, y0, x1, y1 as shares of the image.
        mask: of a segmenter: the class of each pixel, [H, W].
        outline: of a detector's object, where the model gives masks: bool[H, W].
    """

    label: str
    probability: float
    same: bool
    maps: dict[str, NDArray[np.float32]]
    agreement: dict[str, float]
    box: tuple[float, ...] | None = None
    mask: NDArray[np.int64] | None = None
    outline: NDArray[np.bool_] | None = None

    @property
    def said(self) -> str:
        """The class and its probability in words."""
        return f"{self.label} {self.probability:.1%}" if self.label else ""


@dataclass(frozen=True)
class Example:
    """An image, or one query of a detector in it.

    Attributes:
        name, truth: of the image; the class that it is said to show, "" where nobody says.
        pixels: uint8[H, W, 3], as the model sees it.
        views: one a model, in their order.
    """

    name: str
    truth: str
    pixels: NDArray[np.uint8]
    views: tuple[ActivationView, ...]

    @property
    def agreement(self) -> float:
        """The mean over the other models and methods; 1 where there is one model."""
        found = [value for view in self.views[1:] for value in view.agreement.values()]
        return sum(found) / len(found) if found else 1.0


@dataclass(frozen=True)
class Activations:
    """What `cam` found.

    Attributes:
        models: as the caller named them, the first the one that others are compared with.
        layers: the tensor that each model's Grad-CAM is taken from; "" without it.
        examples: those that agree least first.
        data: what the source says of itself.
        warnings: what may be wrong with the preprocessing.
        notes: what the data says of itself.
    """

    models: tuple[str, ...]
    layers: tuple[str, ...]
    examples: tuple[Example, ...]
    data: dict[str, Any]
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """The models' file names, numbered where two share one."""
        names = [Path(model).name.removesuffix(".onnx") for model in self.models]
        return names if len(set(names)) == len(names) else [f"{n + 1} {name}" for n, name in enumerate(names)]

    @property
    def methods(self) -> list[str]:
        """The methods that the examples have maps of."""
        return list(dict.fromkeys(name for example in self.examples for view in example.views for name in view.maps))

    def chosen(self, count: int) -> list[Example]:
        """`count` examples: half of them agree least, half best."""
        if len(self.examples) <= count:
            return list(self.examples)
        least = (count + 1) // 2
        return [*self.examples[:least], *self.examples[len(self.examples) - (count - least) :]]

    def summary(self) -> list[list[str]]:
        """A row a model: its share of equal classes and the mean agreement of its maps, by method."""
        rows = []
        for place, model in enumerate(self.names):
            views = [example.views[place] for example in self.examples]
            same = f"{sum(view.same for view in views) / len(views):.1%}" if any(view.label for view in views) else "-"
            cells = [f"{np.mean([view.agreement[name] for view in views]):.3f}" for name in self.methods]
            rows.append([model, *(["-"] * (1 + len(cells)) if place == 0 else [same, *cells]), self.layers[place]])
        return rows

    @property
    def header(self) -> list[str]:
        """Of `summary`."""
        return ["model", "same class", *(f"{NAMES[name]} agrees" for name in self.methods), "maps from"]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without pictures."""
        return {
            "tool": AUTHOR,
            "models": [{"path": path, "layer": layer} for path, layer in zip(self.models, self.layers, strict=True)],
            "data": self.data,
            "methods": self.methods,
            "examples": [_plain(example) for example in self.examples],
            "warnings": list(self.warnings),
            "notes": list(self.notes),
        }

    def sheet(self) -> list[Part]:
        """In words: how far the models agree, and the examples at both ends."""
        parts: list[Part] = [Heading(", ".join(self.models))]
        parts += [Grid(self.header, self.summary())] if len(self.models) > 1 else []
        parts.append(Item(counted(self.data["samples"], self.data)))
        parts += [Item(prepared)] if (prepared := line(self.data)) else []
        ends = self.chosen(6)
        rows = [[e.name, *(v.said for v in e.views), f"{e.agreement:.3f}"] for e in ends]
        what = "the examples that agree least and best" if len(ends) < len(self.examples) else "the examples"
        return [*parts, Line(f"{what}:"), Grid(["example", *self.names, "maps agree"], rows)]

    def __str__(self) -> str:
        return markdown(self.sheet())


def agreement(one: NDArray[Any], other: NDArray[Any]) -> float:
    """The correlation of two maps of one size."""
    pair = [x.reshape(1, -1).astype(np.float64) for x in (one, other)]
    return float(cosine(*(x - x.mean() for x in pair))[0])


def _plain(example: Example) -> dict[str, Any]:
    views = [
        {
            "label": view.label,
            "probability": view.probability,
            "same": view.same,
            "agreement": view.agreement,
            "box": None if view.box is None else list(view.box),
        }
        for view in example.views
    ]
    return {"name": example.name, "truth": example.truth, "agreement": example.agreement, "views": views}
