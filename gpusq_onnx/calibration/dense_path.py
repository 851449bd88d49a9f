"""The dense model beside a part that is being pruned: what its activations have beyond that part's, at each position.

A second runner goes the same way (`calibration.prefix`), with the weights as they were before each group changed; only
those of the last group are kept twice.

Rows are compared one by one, so they must be about the same thing in both. After a choice that depends on the data (a
detector's best queries, a mask's positions) they need not be: such tensors, and what is made of them, are not compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.calibration.prefix import PrefixRunner
from gpusq_onnx.graph.dataflow import Dataflow, has_subgraph
from gpusq_onnx.graph.model import Model, Tensor
from gpusq_onnx.graph.operators import Is, operators
from gpusq_onnx.graph.sites import Site

_CHOOSERS = operators(Is.CHOOSES | Is.RANDOM) | {"NonZero", "Unique", "Compress"}


class DensePath:
    """A runner that forgets no weight, beside one that sees them change.

    Args:
        model: the model, still dense.
        treated: the runner beside it, before it advances.
        folder: an empty scratch folder.
    """

    def __init__(self, model: Model, treated: PrefixRunner, folder: Path) -> None:
        self._treated = treated
        self._dense = treated.fork(folder)
        self._chosen = _after_choices(model)

    def advance(self, position: int, sites: Iterable[Site]) -> None:
        """Go to a position, from where the weights and biases of these sites may change."""
        self._dense.advance(position)
        self._dense.pin(c.name for site in sites for c in (site.weight, site.bias) if c is not None)

    def is_comparable(self, tensor: Tensor) -> bool:
        """Whether `compared` can be had at this position."""
        return tensor.name not in self._chosen and self._treated.has(tensor.name)

    def compared(self, tensor: Tensor) -> Iterator[tuple[NDArray[Any], NDArray[np.float32]]]:
        """The treated model's values, and the dense one's less these, batch by batch."""
        name = str(tensor.name)
        for dense, treated in zip(self._dense.read(name), self._treated.read(name), strict=True):
            yield treated, dense.astype(np.float32) - treated.astype(np.float32)


def _after_choices(model: Model) -> frozenset[str]:
    """The names of all tensors that depend on a choice made of the data, or that a subgraph gives."""
    flow, found = Dataflow(model), set[str]()
    for node in flow.nodes:
        chooses = has_subgraph(node) or (node.op in _CHOOSERS and bool(flow.data_inputs(node)))
        if chooses or any(tensor.name in found for tensor in node.inputs):
            found.update(tensor.name for tensor in node.outputs)
    return frozenset(found)
