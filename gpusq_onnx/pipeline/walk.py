"""Walk through a model's weights in the order of computation, with statistics of the inputs that each one sees.

Second-order methods (SparseGPT, GPTQ) treat a weight on the activations of the part already treated: consecutive
weights whose inputs exist before the first of them form a group; the data runs up to the group, its inputs are summed
up, its weights are changed, and so on. All groups together cost one forward pass over the data (`pipeline.prefix`).
With a dense model beside it, the same images run through both, and a layer's mean input there is known as well.

Limits: Linears, and Convs over two axes without groups and implicit padding (`observable`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.data.source import Source
from gpusq_onnx.files import Scratch
from gpusq_onnx.graph.model import Model, Tensor
from gpusq_onnx.graph.sites import Site
from gpusq_onnx.pipeline.parallel import share
from gpusq_onnx.pipeline.prefix import PrefixRunner
from gpusq_onnx.pipeline.sizes import BATCH
from gpusq_onnx.sparsity.gram import Gram
from gpusq_onnx.sparsity.rows import conv_rows, linear_rows


class Layer(NamedTuple):
    """A site, and what its inputs are like.

    Attributes:
        site: the weight and its readers.
        gram: of its inputs as they are now.
        dense: the mean of its inputs in the dense model, float32 [k]; without one, of these.
    """

    site: Site
    gram: Gram
    dense: NDArray[np.float32]


class Walk:
    """An iterator of layers; change the site's weight before the next step. A context manager.

    Args:
        model: the model; its nodes must not change while the walk lasts, its weights may.
        sites: `observable` ones.
        source: the images.
        dense: a model with the same readers by the names of what they make, which nothing changes; None: none.

    Attributes:
        images: how many there are.
    """

    def __init__(self, model: Model, sites: Sequence[Site], source: Source, dense: Model | None = None) -> None:
        self._sites = sites
        self._order = {id(node): index for index, node in enumerate(model.graph.nodes)}
        self._folders = [Scratch() for _ in range(1 if dense is None else 2)]
        self._runner = PrefixRunner(model, self._folders[0].path)
        self.images = self._runner.start(source, BATCH)
        self._dense: PrefixRunner | None = None
        if dense is not None:
            self._dense = PrefixRunner(dense, self._folders[1].path)
            self._dense.start(source, BATCH)
            self._twins = {node.outputs[0].name: (index, node) for index, node in enumerate(dense.graph.nodes)}

    def __enter__(self) -> Walk:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for folder in self._folders:
            folder.remove()

    def __iter__(self) -> Iterator[Layer]:
        for start, group in self._groups():
            self._runner.advance(start)
            if self._dense is not None:
                self._dense.advance(min(self._twin(site)[0] for site in group))
            seen: dict[str, tuple[Gram, NDArray[np.float32]]] = {}
            for site in group:
                key = f"{_data(site).name}{'' if site.is_linear else site.view.steps[-1:]}"
                if key not in seen:
                    seen[key] = self._look(site)
                yield Layer(site, *seen[key])

    def _look(self, site: Site) -> tuple[Gram, NDArray[np.float32]]:
        gram = Gram(site.k, share)
        for x in self._runner.read(str(_data(site).name)):
            gram.add(_rows(site, x))
        if self._dense is None:
            return gram, gram.mean
        total = np.zeros(site.k)
        for x in self._dense.read(self._twin(site)[1]):
            total += _rows(site, x).sum(axis=0, dtype=np.float64)
        return gram, (total / max(1, gram.rows)).astype(np.float32)

    def _twin(self, site: Site) -> tuple[int, str]:
        """The reader's place in the dense model, and what it multiplies with there."""
        reader = site.readers[0]
        index, twin = self._twins[reader.outputs[0].name]
        return index, str(twin.inputs[1 - site.operand(reader)].name)

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
