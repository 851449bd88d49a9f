"""Walk through a model's weights in the order of computation, with statistics of the inputs that each one sees.

Second-order methods (SparseGPT, GPTQ) treat a weight on the activations of the part already treated: consecutive
weights whose inputs exist before the first of them form a group; the data runs up to the group, its inputs are summed
up, its weights are changed, and so on. All groups together cost one forward pass over the data (`calibration.prefix`).

With `dense`, the dense model goes beside (`calibration.dense_path`), and a weight comes with what is missing of its
outputs (`sparsity.target`), seen at its inputs and at the stream that its output is added to right after its own bias.
Not a weight with several readers: what one of them misses is no matter of the others.

Limits: Linears, and Convs over two axes without groups and implicit padding (`observable`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.calibration.dense_path import DensePath
from gpusq_onnx.calibration.image_bytes import BATCH
from gpusq_onnx.calibration.prefix import PrefixRunner
from gpusq_onnx.calibration.row_weights import RowWeights
from gpusq_onnx.data.source import Source
from gpusq_onnx.errors import UnsupportedModelError
from gpusq_onnx.graph.model import Model, Tensor
from gpusq_onnx.graph.sites import Site
from gpusq_onnx.pipeline.parallel import share
from gpusq_onnx.scratch import Scratch
from gpusq_onnx.sparsity.gram import LARGEST, Gram
from gpusq_onnx.sparsity.rows import conv_rows, linear_rows
from gpusq_onnx.sparsity.target import WeightTarget


class Walk:
    """An iterator of (site, Gram of its inputs, its WeightTarget or None); change the weight before the next step.

    A context manager.

    Args:
        model: the model; its nodes must not change while the walk lasts, its weights may.
        sites: `observable` ones.
        source: the images.
        dense: whether to find targets.
        fisher: weigh rows by what the answer depends on (`calibration.row_weights`), with this seed; None: all alike.

    Attributes:
        images: how many there are.

    Raises:
        UnsupportedModelError: in a step, inputs that are too large to be squared; names the node.
    """

    def __init__(
        self, model: Model, sites: Sequence[Site], source: Source, *, dense: bool = False, fisher: int | None = None
    ) -> None:
        self._sites = sites
        self._order = {id(node): index for index, node in enumerate(model.graph.nodes)}
        self._folder = Scratch()
        self._weights = None
        if fisher is not None:
            self._weights = RowWeights(model, sites, source, BATCH, _subfolder(self._folder, "weights"), fisher)
        self._runner = PrefixRunner(model, _subfolder(self._folder, "treated"))
        self.images = self._runner.start(source, BATCH)
        self._dense = DensePath(model, self._runner, _subfolder(self._folder, "dense")) if dense else None

    def __enter__(self) -> Walk:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.remove()

    def __iter__(self) -> Iterator[tuple[Site, Gram, WeightTarget | None]]:
        for start, group in self._groups():
            self._runner.advance(start)
            if self._dense is not None:
                self._dense.advance(start, group)
            grams: dict[str, Gram] = {}
            for site in group:
                seen = f"{_data(site).name}{'' if site.is_linear else site.view.steps[-1:]}"
                key = site.name if self._weights else seen  # rows of another output have other weights
                known = grams.get(key)
                gram = grams[key] = known or Gram(site.k, share)
                if known is None:
                    inputs = self._runner.read(str(_data(site).name))
                    for x, weights in zip(inputs, self._weights_of(site), strict=False):
                        gram.add(_rows(site, x), weights)
                    _require_squares(gram, site)
                yield site, gram, self._target(site, gram)

    def _target(self, site: Site, gram: Gram) -> WeightTarget | None:
        data, stream = _data(site), _stream(site)
        if self._dense is None or len(site.readers) > 1 or not self._dense.is_comparable(data):
            return None
        target = WeightTarget(site.read(), gram, share)
        joins = stream is not None and self._dense.is_comparable(stream)
        joined = (more for _, more in self._dense.compared(stream)) if joins else repeat(None)
        batches = zip(self._dense.compared(data), joined, self._weights_of(site), strict=False)
        for (x, ahead), more, weights in batches:
            rows = _rows(site, x)
            added = None if more is None else _output_rows(site, more, len(rows))
            target.add(rows, _rows(site, ahead), added, weights)
        return target

    def _weights_of(self, site: Site) -> Iterator[NDArray[np.float32] | None]:
        return self._weights.of(site) if self._weights else repeat(None)

    def _groups(self) -> Iterator[tuple[int, list[Site]]]:
        """Consecutive sites whose inputs all exist before the first of them, with that position in the node list."""
        group: list[Site] = []
        start = 0
        for site in sorted(self._sites, key=lambda site: self._order[id(site.readers[0])]):
            producers = _data(site).inputs
            ready = self._order[id(producers[0])] + 1 if producers else 0
            if group and ready > start:
                yield start, group
                group = []
            if not group:
                start = self._order[id(site.readers[0])]
            group.append(site)
        if group:
            yield start, group


def observable(site: Site) -> bool:
    """Whether the rows that a site's weight multiplies can be made of its input."""
    attrs = site.readers[0].attrs
    if not site.is_linear:
        plain = attrs.get("group", 1) == 1 and attrs.get("auto_pad", "NOTSET") == "NOTSET"
        return plain and site.op == "Conv" and len(site.weight.shape) == 4
    return site.op == "MatMul" or not attrs.get("transA", 0)


def _require_squares(gram: Gram, site: Site) -> None:
    if not gram.finite:
        raise UnsupportedModelError(
            f"the inputs of {site.name!r} are too large for second-order errors: their squares overflow",
            where=site.place,
            expected=f"values below {LARGEST:g}",
            hint="method=magnitude, rounding=nearest; or the training went wrong: check the original checkpoint",
        )


def _data(site: Site) -> Tensor:
    """What the first reader multiplies with, after a Q/DQ pair if there is one."""
    reader = site.readers[0]
    return reader.inputs[1 - site.operand(reader)]


def _stream(site: Site) -> Tensor | None:
    """What the site's output is added to, where nothing else reads it."""
    readers = site.output.outputs
    if len(readers) != 1 or readers[0].op != "Add":
        return None
    return next((t for t in readers[0].inputs if t is not site.output), None)


def _output_rows(site: Site, stream: NDArray[np.float32], rows: int) -> NDArray[np.float32] | None:
    """What is added to a site's output, [rows, out]; None where it is broadcast."""
    last = stream if site.is_linear else np.moveaxis(stream, 1, -1)
    return last.reshape(rows, site.out) if last.shape[-1] == site.out and last.size == rows * site.out else None


def _subfolder(folder: Scratch, name: str) -> Path:
    (folder.path / name).mkdir()
    return folder.path / name


def _rows(site: Site, x: NDArray[Any]) -> NDArray[np.floating[Any]]:
    if site.is_linear:
        return linear_rows(x)
    attrs = site.readers[0].attrs
    return conv_rows(
        x,
        site.weight.shape[2:],
        attrs.get("strides", (1, 1)),
        attrs.get("pads", (0, 0, 0, 0)),
        attrs.get("dilations", (1, 1)),
    )
