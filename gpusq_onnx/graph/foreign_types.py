"""Types after operators of other domains, which inference does not know: those that the products after them take.

A file may declare such a type, and often a wrong one: a converter to float16 leaves the float32 of before after a fused
operator, and no runtime looks. Unknown or wrong, it would become that of a Q/DQ pair. A MatMul, Gemm or Conv has one
type for both operands, and that of its weight is stored: it is that of all that lies between it and such an operator
and keeps the type.
"""

from __future__ import annotations

from gpusq_onnx.errors import UnsupportedModelError
from gpusq_onnx.graph.dataflow import ELEMENTWISE, Dataflow
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.operators import is_standard
from gpusq_onnx.graph.shapes import infer_shapes
from gpusq_onnx.graph.sites import find_sites

_KEEP = ELEMENTWISE - {"Cast", "QuantizeLinear", "DequantizeLinear"}


def settle_foreign_types(model: Model) -> None:
    """Fill `Model.typed` with what operators of other domains make for products with stored weights."""
    if all(map(is_standard, model.graph.nodes)):
        return
    try:
        types = infer_shapes(model, one_image=False)[1]
    except UnsupportedModelError:
        return  # the graph contradicts itself: who works with its shapes says so
    flow = Dataflow(model)
    for site in find_sites(model, flow):
        for reader in site.readers:
            data = reader.inputs[1 - site.operand(reader)]
            if data.name not in types:
                ends = flow.ends(data, lambda node: not is_standard(node) or node.op not in _KEEP)
                foreign = [str(tensor.name) for tensor, node in ends if not is_standard(node)]
                model.typed.update(dict.fromkeys(foreign, site.reads_as))
