"""For the tests of FP16 graphs: the rewrite as `passes.fp16` does it, checked, and what it made."""

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from small_graphs import model

from gpusq_onnx.graph import invariants, io
from gpusq_onnx.graph.fp16.policy import kept_single
from gpusq_onnx.graph.fp16.rewrite import Halved, halve
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.structure import analyse


def halved(made: onnx.ModelProto | Model, *, io16: bool = False, flagged: tuple[str, ...] = ()) -> tuple[Model, Halved]:
    loaded = made if isinstance(made, Model) else model(made)
    structure = analyse(loaded)
    kept = kept_single(loaded, structure.flow, structure.types, flagged)
    done = halve(loaded, structure.types, set(kept), io=io16)
    invariants.check(loaded, "fp16")
    onnx.shape_inference.infer_shapes(onnx.load_from_string(io.to_bytes(loaded)), check_type=True, strict_mode=True)
    return loaded, done


def reasons(made: onnx.ModelProto, flagged: tuple[str, ...] = ()) -> dict[str, str]:
    loaded = model(made)
    structure = analyse(loaded)
    kept = kept_single(loaded, structure.flow, structure.types, flagged)
    return {n.name: kept[id(n)] for n in loaded.graph.nodes if id(n) in kept}


def types(loaded: Model) -> dict[str, str]:
    return {name: kind.name for name, kind in analyse(loaded).types.items()}


def casts(loaded: Model) -> list[tuple[str, str]]:
    return [(n.inputs[0].name, n.outputs[0].name) for n in loaded.graph.nodes if n.op == "Cast"]


def in_half(loaded: Model, x: np.ndarray) -> np.ndarray:
    """y by numpy, where FP16 is FP16: onnxruntime's CPU kernels compute in FP32 and leave Casts between them out."""
    with np.errstate(over="ignore", invalid="ignore"):
        return ReferenceEvaluator(onnx.load_from_string(io.to_bytes(loaded))).run(["y"], {"x": x})[0]
