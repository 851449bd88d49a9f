"""A few numbers about each of many tensors, taken inside the graph: the tensors themselves never leave the runtime.

The probes (ReduceMin and ReduceMax, or Shape) come right after the node that makes each tensor while the scratch copy
is written, and are gone afterwards. A runtime that keeps to this order (`runtime.ort.Session`, `file_order`) frees the
tensors one by one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_graphsurgeon as gs

from gpusq_onnx.graph import io
from gpusq_onnx.graph.edits import Names, unlink
from gpusq_onnx.graph.model import Model

_PROBES: dict[str, tuple[type[np.generic], dict[str, int]]] = {
    "ReduceMin": (np.float32, {"keepdims": 0}),
    "ReduceMax": (np.float32, {"keepdims": 0}),
    "Shape": (np.int64, {}),
}


def write_probed(
    model: Model, path: Path, tensors: Collection[str], probes: Sequence[Literal["ReduceMin", "ReduceMax", "Shape"]]
) -> dict[str, list[str]]:
    """Write a scratch copy whose only outputs are what the probes find; the model stays as it is.

    Returns:
        For each tensor (float where it is reduced) the names of its outputs, one a probe.
    """
    names = Names(model)
    known = model.graph.tensors()
    outputs: dict[str, list[str]] = {}
    before = list(model.graph.nodes)
    added: dict[str, list[gs.Node]] = {}
    for name in tensors:
        made = [gs.Variable(names.fresh(f"{name}_{op}"), _PROBES[op][0]) for op in probes]
        added[name] = [
            gs.Node(op, names.fresh(f"{name}_{op}"), dict(_PROBES[op][1]), [known[name]], [tensor])
            for op, tensor in zip(probes, made, strict=True)
        ]
        outputs[name] = [tensor.name for tensor in made]
    produced = {id(tensor.inputs[0]) for tensor in (known[name] for name in added) if tensor.inputs}
    try:
        model.graph.nodes[:] = [node for name in added if not known[name].inputs for node in added[name]]
        for node in before:
            model.graph.nodes.append(node)
            for tensor in node.outputs if id(node) in produced else ():
                model.graph.nodes.extend(added.get(tensor.name, []))
        io.write_tapped(model, path, [name for pair in outputs.values() for name in pair])
    finally:
        for nodes in added.values():
            for node in nodes:
                unlink(node)
        model.graph.nodes[:] = before
    return outputs
