"""What a model was at one moment, to say whether a pass changed it: its graph's bytes, and a mark of each weight.

A weight that lies in a file is marked by its place, one in memory by the SHA-256 of its bytes. No array is kept: a pass
that replaces all weights would hold the model twice.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.graph.model import decoded, is_loaded
from gpusq_onnx.graph.snapshot import Snapshot
from gpusq_onnx.pipeline.parallel import in_order


class Fingerprint:
    """The model of a snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        constants = list(snapshot.model.constants())
        marks = in_order(_mark, [constant._values for constant in constants])
        self._graph = _graph(snapshot)
        self._marks = {constant.name: mark for constant, mark in zip(constants, marks, strict=True)}

    def differs_from(self, snapshot: Snapshot) -> bool:
        """Whether the graph or any value of a weight is another one in a later snapshot."""
        now = {constant.name: constant._values for constant in snapshot.model.constants()}
        if self._marks.keys() != now.keys() or self._graph != _graph(snapshot):
            return True
        pairs = [(mark, now[name]) for name, mark in self._marks.items() if mark is not now[name]]
        return any(_as_digest(mark) != _as_digest(values) for mark, values in pairs)


def _mark(values: Any) -> Any:
    """Lazy values themselves, since passes replace values and never edit them; of an array its digest."""
    return _digest(values) if is_loaded(values) else values


def _as_digest(mark: Any) -> bytes:
    if isinstance(mark, bytes):
        return mark
    return _digest(decoded(mark))


def _graph(snapshot: Snapshot) -> bytes:
    data: bytes = snapshot.graph.SerializeToString(deterministic=True)
    return data


def _digest(values: NDArray[Any]) -> bytes:
    if values.dtype.hasobject:
        return hashlib.sha256(repr(values.tolist()).encode()).digest()
    return hashlib.sha256(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data).digest()
