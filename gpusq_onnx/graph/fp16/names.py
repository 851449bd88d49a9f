"""Names that onnxruntime gives the Casts that it inserts where a CPU has no FP16 kernel, free for it to give again.

A file that it has optimised holds `InsertedPrecisionFreeCast_x`, the float32 copy of x. Where something new reads x in
FP16, a session makes that copy anew and finds its name taken: it refuses the file. Source: onnxruntime 1.31,
insert_cast_transformer.cc. Limits: constants keep their names, by which weights are known.
"""

from __future__ import annotations

from gpusq_onnx.graph.edits import Names
from gpusq_onnx.graph.model import Model

_INSERTED = "InsertedPrecisionFreeCast_"


def free_names(model: Model) -> None:
    """Take the prefix from tensors that nodes make, but for the graph's outputs and what subgraphs read."""
    inner = model.graph.subgraphs(recursive=True)
    kept = {tensor.name for tensor in model.graph.outputs} | {name for graph in inner for name in graph.tensors()}
    fresh = Names(model).fresh
    for name, tensor in model.graph.tensors().items():
        if name.startswith(_INSERTED) and tensor.inputs and name not in kept:
            tensor.name = fresh(name.replace(_INSERTED, ""))
            if name in model.observed:
                model.observed[tensor.name] = model.observed.pop(name)
            if name in model.typed:
                model.typed[tensor.name] = model.typed.pop(name)
