"""Walk through a model's weights in the order of computation, with statistics of the inputs that each one sees.

Second-order methods (SparseGPT, GPTQ) treat a weight on the activations of the part already treated: consecutive
weights whose inputs exist before the first of them form a group; the data runs up to the group, its inputs are summed
up, its weights are changed, and so on. All groups together cost one forward pass over the data (`calibration.prefix`).

Limits: Linears, and Convs over two axes without groups and implicit padding (`observable`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.calibration.prefix import PrefixRunner
from gpusq_onnx.calibration.sizes import BATCH
from gpusq_onnx.data.source import Source
from gpusq_onnx.errors import UnsupportedModelError
from gpusq_onnx.files import Scratch
from gpusq_onnx.graph.model import Model, Tensor
from gpusq_onnx.graph.sites import Site
from gpusq_onnx.pipeline.parallel import share
from gpusq_onnx.sparsity.gram import Gram
from gpusq_onnx.sparsity.rows import conv_rows, linear_rows


class Walk:
    """An iterator of (site, Gram of its inputs); change the site's weight before the next step. A context manager.

    Args:
        model: the model; its nodes must not change while the walk lasts, its weights may.
        sites: `observable` ones.
        source: the images.

    Attributes:
        images: how many there are.

    Raises:
        UnsupportedModelError: in a step, inputs that are too large to be squared; names the node.
    """

    def __init__(self, model: Model, sites: Sequence[Site], source: Source) -> None:
        self._sites = sites
        self._order = {id(node): index for index, node in enumerate(model.graph.nodes)}
        self._folder = Scratch()
        self._runner = PrefixRunner(model, self._folder.path)
        self.images = self._runner.start(source, BATCH)

    def __enter__(self) -> Walk:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.remove()

    def __iter__(self) -> Iterator[tuple[Site, Gram]]:
        for start, group in self._groups():
            self._runner.advance(start)
            grams: dict[str, Gram] = {}
            for site in group:
                tensor = str(_data(site).name)
                key = f"{tensor}{'' if site.is_linear else site.view.steps[-1:]}"
                if key not in grams:
                    gram = grams[key] = Gram(site.k, share)
                    for x in self._runner.read(tensor):
                        gram.add(_rows(site, x))
                    _require_squares(gram, site)
                yield site, grams[key]

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
        reader = site.readers[0]
        raise UnsupportedModelError(
            f"the inputs of {site.name!r} are too large for second-order errors: their squares overflow",
            where=f"read by node {reader.name!r} ({reader.op})",
            expected="values below 1e+18",
            hint="method=magnitude, rounding=nearest; or the training went wrong: check the original checkpoint",
        )


def _data(site: Site) -> Tensor:
    """What the first reader multiplies with, after a Q/DQ pair if there is one."""
    reader = site.readers[0]
    return reader.inputs[1 - site.operand(reader)]


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
