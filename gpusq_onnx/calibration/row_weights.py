"""What each row of a layer's output counts for, when errors are summed over rows.

    weight = (slope / mean slope + FLOOR) / (1 + FLOOR)         slope: `torchgraph.slopes`, the mean over all rows

A classifier looks at few places: after the last block of a ViT at the class token only. An error elsewhere costs
little, and a weight that is solved for without this spends most of its freedom on it.

Limits: classifiers, and what `torchgraph` converts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.calibration.store import BatchStore
from gpusq_onnx.data.source import Source
from gpusq_onnx.errors import UnsupportedModelError
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.sites import Site
from gpusq_onnx.tasks.kinds import image_shape, output_kinds

FLOOR = 0.1  # of a row that the answer does not depend on, in units of the mean


class RowWeights:
    """The slopes of all sites' outputs, batch by batch in a scratch folder.

    Args:
        model: as it is before weights change.
        sites: whose rows are weighted.
        source: the images.
        batch: images at a time.
        folder: an empty scratch folder.
        seed: of the answers that are drawn.

    Raises:
        UnsupportedModelError: no classifier, or an operator that torchgraph cannot convert.
    """

    def __init__(
        self, model: Model, sites: Sequence[Site], source: Source, batch: int, folder: Path, seed: int
    ) -> None:
        from gpusq_onnx.torchgraph.slopes import Slopes

        self._store = BatchStore(folder)
        places = {_place(site): -1 if site.is_linear else 1 for site in sites}
        slopes = Slopes(model, answers(model), places, seed)
        self._sums = dict.fromkeys(places, 0.0)
        self._rows = dict.fromkeys(places, 0)
        self._batches = 0
        for data in source.batches(batch):
            found = slopes.of(data.feed)
            found = {name: values[: len(values) * data.size // data.rows] for name, values in found.items()}
            for name, values in found.items():
                self._sums[name] += float(values.sum(dtype=np.float64))
                self._rows[name] += len(values)
            self._store.write(self._batches, found)
            self._batches += 1

    def of(self, site: Site) -> Iterator[NDArray[np.float32]]:
        """The weights of a site's rows, batch by batch; their mean over all is 1."""
        name = _place(site)
        mean = self._sums[name] / max(1, self._rows[name])
        for index in range(self._batches):
            slopes: NDArray[np.float32] = self._store.read(index, name)
            of_mean = slopes / np.float32(mean) if mean > 0 else np.ones_like(slopes)
            yield (of_mean + np.float32(FLOOR)) / np.float32(1 + FLOOR)


def answers(model: Model) -> list[str]:
    """The names of a classifier's outputs.

    Raises:
        UnsupportedModelError: it is none.
    """
    found = _logits(model)
    if not found:
        raise UnsupportedModelError(
            "rows are weighted by what a classifier answers, and this is none",
            expected="an output [batch, classes]",
            found=", ".join(f"{spec.name} {list(spec.shape)}" for spec in model.outputs()),
            hint="rows=equal",
        )
    return found


def classifies(model: Model) -> bool:
    """Whether the model is a classifier."""
    return bool(_logits(model))


def _logits(model: Model) -> list[str]:
    image = image_shape(spec.shape for spec in model.inputs())
    floats = {spec.name: spec.shape for spec in model.outputs() if spec.dtype.kind == "f"}
    return [name for name, kind in output_kinds(floats, image).items() if kind == "logits"]


def _place(site: Site) -> str:
    return str(site.readers[0].outputs[0].name)
