"""Figures 4 and 6 of the paper on a ViT-Tiny: class activation maps of the dense and both compressed models, by `cam`.

Figure 4 looks at several depths, figure 6 at the last norm. The last block's output has no map: the head reads the
class token alone, so that no gradient reaches its patches; the norm of that block is taken in its place. Agreement is
the correlation of a map with the dense model's (`report.page.activation`). Pictures hold ImageNet's images, which may
not be passed on: they stay in `out/`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gpusq_onnx.graph.io import load
from gpusq_onnx.graph.structure import analyse
from gpusq_onnx.workflows.cam import cam, draw
from tools.paper.rows import FORMATS, Row
from tools.paper.work import IMAGENET, file_of, kept
from tools.zoo.exports import shared_folder

IMAGES = 8
SHOWN = 4


def figures(row: Row, out: Path) -> dict[str, Any]:
    """Draw, and give the numbers.

    Raises:
        FileNotFoundError: a compressed model is not there; its step makes it.
    """
    models = [file_of(row), *(kept(row, form) for form in FORMATS.values())]
    missing = [path for path in models if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"{missing[0]} is not there: python -m tools.paper --only {row.model}")
    depths = analyse(load(models[0])).feature_maps
    layers = {f"feature map {number}": name for number, name in enumerate(depths[:-1], 1)} | {"last norm": None}
    looks: dict[str, Any] = {}
    for place, layer in layers.items():
        images = shared_folder() / "data" / "imagenet" / "val"
        options = {**IMAGENET, "samples": IMAGES}
        found = cam(*models, data=images, data_options=options, methods=["gradcam"], layer=layer)
        picture = "figure6.png" if layer is None else f"figure4-{place.split()[-1]}.png"
        draw(found, out / picture, SHOWN)
        views = {key: [example.views[n] for example in found.examples] for n, key in enumerate(FORMATS, 1)}
        looks[place] = {
            "layer": found.layers[0],
            "agreement": {key: float(np.mean([v.agreement["gradcam"] for v in own])) for key, own in views.items()},
        }
        same = {key: sum(view.same for view in own) / len(own) for key, own in views.items()}
    return {"images": IMAGES, "looks": looks, "same": same}
