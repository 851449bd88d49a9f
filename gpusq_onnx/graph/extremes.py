"""The smallest and largest value of many tensors, taken inside the graph: two numbers a tensor leave the runtime.

ReduceMax and ReduceMin stand behind each tensor while the scratch copy is written, and are gone afterwards.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs

from gpusq_onnx.graph import io
from gpusq_onnx.graph.edits import unlink
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.naming import Names

_REDUCTIONS = ("ReduceMin", "ReduceMax")


def write_with_extremes(model: Model, path: Path, tensors: Collection[str]) -> dict[str, tuple[str, str]]:
    """Write a scratch copy whose only outputs are the extremes of float tensors; the model stays as it is.

    Returns:
        For each tensor the names of two outputs: its smallest value, its largest (scalars).
    """
    names = Names(model)
    known = model.graph.tensors()
    outputs: dict[str, tuple[str, str]] = {}
    before = list(model.graph.nodes)
    added = []
    for name in tensors:
        made = [gs.Variable(names.fresh(f"{name}_{op}"), np.float32) for op in _REDUCTIONS]
        for op, tensor in zip(_REDUCTIONS, made, strict=True):
            added.append(gs.Node(op, names.fresh(f"{name}_{op}"), {"keepdims": 0}, [known[name]], [tensor]))
        outputs[name] = (made[0].name, made[1].name)
    try:
        model.graph.nodes.extend(added)
        io.write_tapped(model, path, [name for pair in outputs.values() for name in pair])
    finally:
        for node in added:
            unlink(node)
        model.graph.nodes[:] = before
    return outputs
