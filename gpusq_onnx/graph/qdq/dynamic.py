"""Activations that get their block scales at run time: the node and its two DequantizeLinears.

    x, outer -> TRT_FP4DynamicQuantize (domain trt) -> codes, block scales (FP8)
    block scales, outer -> DequantizeLinear -> floats;  codes, floats -> DequantizeLinear (axis -1, block_size 16) -> x'

TensorRT imports the node and fuses it with the product after it; it refuses static FP4 activations. What it computes is
in `quant.dynamic`; for runtimes that have no such operator, `graph.qdq.simulated` says it in ordinary ones.

Source: ModelOpt `modelopt/onnx/export/nvfp4_exporter.py`. Limits: the codes have no other reader than their
DequantizeLinear.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from onnx import GraphProto, TensorProto, helper

from gpusq_onnx.graph.edits import Names
from gpusq_onnx.graph.operators import FP4_QUANTISER
from gpusq_onnx.quant.formats import FP4, FP8

DOMAIN = "trt"
FORMAT = FP4  # of the codes that the operator writes


def dynamic_nodes(
    fresh: Names, tensor: gs.Tensor, outer: float, block: int, made: gs.Variable
) -> tuple[gs.Node, gs.Node, gs.Node]:
    """The three nodes that quantise `tensor` at run time and give `made`, in order."""
    stem = tensor.name
    factor = gs.Constant(fresh.fresh(f"{stem}_scale"), np.asarray(outer, np.float32))
    codes = gs.Variable(fresh.fresh(f"{stem}_quantized"), np.dtype(FORMAT.grid), getattr(tensor, "shape", None))
    scales = gs.Variable(fresh.fresh(f"{stem}_block_scales"), np.dtype(FP8.grid))
    floats = gs.Variable(fresh.fresh(f"{stem}_block_scales_dequantized"), np.dtype(np.float32))
    attrs = {"axis": -1, "block_size": block, "scale_type": int(TensorProto.FLOAT8E4M3FN)}
    name = fresh.fresh(f"{stem}_DynamicQuantize")
    of_codes = {"axis": -1, "block_size": block}
    return (
        gs.Node(FP4_QUANTISER, name, attrs, [tensor, factor], [codes, scales], domain=DOMAIN),
        gs.Node("DequantizeLinear", fresh.fresh(f"{name}_scales"), {}, [scales, factor], [floats]),
        gs.Node("DequantizeLinear", fresh.fresh(f"{name}_codes"), of_codes, [codes, floats], [made]),
    )


def is_dynamic(node: gs.Node) -> bool:
    """Whether a node quantises at run time."""
    return bool(node.op == FP4_QUANTISER)


def without_dynamic(graph: GraphProto) -> None:
    """Put Identity in place of the three nodes, for shape inference, which knows none of them; x' is as x."""
    sources = {node.output[0]: node.input[0] for node in graph.node if node.op_type == FP4_QUANTISER}
    scales = {node.output[1] for node in graph.node if node.op_type == FP4_QUANTISER and len(node.output) > 1}
    if not sources:
        return
    kept = []
    for node in graph.node:
        if node.op_type == FP4_QUANTISER or (node.op_type == "DequantizeLinear" and node.input[0] in scales):
            continue
        if node.op_type == "DequantizeLinear" and node.input[0] in sources:
            node = helper.make_node("Identity", [sources[node.input[0]]], list(node.output), node.name)
        kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)
