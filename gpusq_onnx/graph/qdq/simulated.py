"""What onnxruntime's CPU kernels lack, and a model in ordinary operators that computes the same.

    FP4 tensors, activations quantised at run time   no session loads them. The model has a *twin* instead: weights as
                                                     the floats that their codes mean, and ordinary operators that
                                                     compute what `quant.dynamic` says
    bfloat16                                         no kernel on a CPU computes it: float32 in the twin
    FP8 pairs around a product                       a default session fuses them into integer kernels, which take no
                                                     FP8, and refuses the model; `session.disable_quant_qdq=1` runs it

Names of inputs, outputs and dequantised tensors are the same in the twin. FP4 costs about twenty nodes an
activation. The twin is for checking alone: it is never written beside a model.

Source: onnxruntime 1.31.1, tried; docs/formats.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from gpusq_onnx.graph.edits import Names, rewire, unlink
from gpusq_onnx.graph.model import Model, type_name, values_of
from gpusq_onnx.graph.qdq.codes import scales_of
from gpusq_onnx.graph.qdq.dynamic import FORMAT, is_dynamic
from gpusq_onnx.graph.qdq.float_twin import constants_of_codes
from gpusq_onnx.graph.qdq.quantize_nodes import code_type
from gpusq_onnx.graph.trace import trace
from gpusq_onnx.graph.widening import holds_bfloat16, widen
from gpusq_onnx.quant.formats import Format, natural, quantize

_TINY = np.float32(2.0**-126)

Runs = Literal["default", "exact", "twin"]


def holds_fp4(model: Model) -> bool:
    """Whether weights are FP4, or activations quantised to it at run time."""
    return any(map(is_dynamic, model.graph.nodes)) or any(type_name(c) == FORMAT.element for c in model.constants())


def runs_as(model: Model) -> Runs:
    """How onnxruntime's CPU kernels run a model: as it is opened by default, with Q/DQ unfused, or by its twin only."""
    if holds_fp4(model) or holds_bfloat16(model):
        return "twin"
    formats = [natural(code_type(node)) for node in model.graph.nodes if node.op == "QuantizeLinear"]
    return "exact" if any(fmt is not None and fmt.grid for fmt in formats) else "default"


NOTES = {
    "exact": "onnxruntime's default session refuses FP8 products, whose Q/DQ it fuses into integer kernels; what ran "
    "has session.disable_quant_qdq=1",
    "twin": "no onnxruntime kernel on a CPU runs FP4 or bfloat16: the file itself is not proven; what ran is the same "
    "graph with FP4 in ordinary operators, and bfloat16 as float32",
}


def twin_of(model: Model) -> Model:
    """A model in ordinary operators that computes what `model` says; `model` is not changed."""
    twin = model.clone()
    widen(twin)
    fresh, nodes = Names(twin), list[gs.Node]()
    for node in twin.graph.nodes:
        found = trace(node.inputs[0]) if node.op == "QuantizeLinear" and code_type(node) == FORMAT.element else None
        if found is not None:  # a float weight before its pair
            codes = quantize(found.view.read(values_of(found.weight)), scales_of(node), FORMAT)
            rewire(node.outputs[0].outputs, node.outputs[0], gs.Constant(fresh.fresh(f"{node.name}_codes"), codes))
    constants_of_codes(twin, {FORMAT.element})
    for node in twin.graph.nodes:
        if not is_dynamic(node):
            nodes.append(node)
            continue
        reader = next((reader for reader in node.outputs[0].outputs if reader.op == "DequantizeLinear"), None)
        if reader is None:
            continue
        source, made = node.inputs[0], reader.outputs[0]
        outer = float(np.asarray(values_of(node.inputs[1])).reshape(()))
        for dead in (reader, *node.outputs[1].outputs, node):
            unlink(dead)
        nodes += _simulated(fresh, source, made, outer, int(reader.attrs.get("block_size", FORMAT.blocks[0])))
    twin.graph.nodes[:] = [node for node in nodes if node.outputs and not _unread(node)]
    return twin


def _unread(node: gs.Node) -> bool:
    """Whether a QuantizeLinear of a weight has lost its reader."""
    return bool(node.op == "QuantizeLinear") and not node.outputs[0].outputs


def _simulated(fresh: Names, x: gs.Tensor, made: gs.Variable, outer: float, block: int) -> list[gs.Node]:
    """`quant.dynamic.dynamic_quantize` in ONNX operators."""
    nodes: list[gs.Node] = []
    stem = f"{x.name}_simulated"

    def const(values: Any, kind: Any = np.float32) -> gs.Constant:
        return gs.Constant(fresh.fresh(f"{stem}_constant"), np.asarray(values, kind))

    def call(op: str, *inputs: gs.Tensor, into: gs.Variable | None = None, **attrs: Any) -> gs.Variable:
        result = into if into is not None else gs.Variable(fresh.fresh(f"{stem}_{op}"))
        nodes.append(gs.Node(op, fresh.fresh(f"{stem}_{op}_node"), attrs, list(inputs), [result]))
        return result

    top = np.float32(FORMAT.largest)
    blocks = call("Reshape", x, const([-1, block], np.int64))
    peaks = call("ReduceMax", call("Abs", blocks), const([1], np.int64), keepdims=1)
    small = call("Cast", call("Div", peaks, const(top * outer)), to=int(TensorProto.FLOAT8E4M3FN), saturate=1)
    scale = call("Mul", call("Cast", small, to=int(TensorProto.FLOAT)), const(outer))
    steps = call("Clip", call("Div", blocks, call("Max", scale, const(_TINY))), const(-top), const(top))
    quantum = _quantum(call, const, call("Abs", steps), FORMAT)
    codes = call("Mul", call("Round", call("Div", steps, quantum)), quantum)
    call("Reshape", call("Mul", codes, scale), call("Shape", x), into=made)
    return nodes


def _quantum(call: Any, const: Any, size: gs.Variable, fmt: Format) -> gs.Tensor:
    """The distance of the grid's values at |steps|: that of the binade, of which a grid of 4 bits has few."""
    wide: gs.Tensor | None = None
    for least, quantum in _binades(fmt):
        step = const(quantum)
        wide = step if wide is None else call("Where", call("Less", size, const(least * 2)), step, wide)
    return wide


def _binades(fmt: Format) -> Iterator[tuple[float, float]]:
    """(start, distance of its values) of each binade of a small float grid, from the largest down to the subnormals."""
    start = 2.0 ** int(np.floor(np.log2(fmt.largest)))
    while start >= fmt.least_normal:
        yield start, start * 2.0**-fmt.mantissa
        start /= 2
