"""Linears whose weight alone is in 4 bits: the two forms that kernels exist for, and the Linears that are in them.

    tensorrt      INT4 [K, N] -> DequantizeLinear(axis 0, block_size b, scale [K/b, N]) -> MatMul or Gemm, transB = 0
    onnxruntime   com.microsoft::MatMulNBits(x, B uint8 [N, K/b, b/2], scale [N, K/b]) -> Add(bias)

The first keeps the plan small in TensorRT, and onnxruntime's default session fuses it to the second (docs/formats.md).
With the reduction along axis 1 (Gemm with transB = 1, or a Transpose after the DequantizeLinear) TensorRT's plan is
small, too, and onnxruntime computes it slowly; so such weights are stored anew. A missing zero point is zero in the
first form, and 8 in the second: its codes are stored as code + 8, the lower four bits of a byte first.

Source: ONNX DequantizeLinear-21; onnxruntime's contrib operators, MatMulNBits. Limits: blocks that divide k.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from gpusq_onnx.graph.edits import Names, position, rewire
from gpusq_onnx.graph.model import Model, values_of
from gpusq_onnx.graph.operators import ONNXRUNTIME
from gpusq_onnx.graph.qdq.pairs import prune_node
from gpusq_onnx.graph.sites import Site, module_path
from gpusq_onnx.quant.formats import clamp_scale
from gpusq_onnx.quant.scales import Scales

NBITS = "MatMulNBits"
_INT4 = onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.INT4)
_KEEPS_DATA, _ROUNDS_DATA = 1, 4  # accuracy levels: data in FP32, in INT8
_ZERO = 8  # of an unsigned 4-bit code


@dataclass(frozen=True)
class NBits:
    """One MatMulNBits node: w[out, k] in `bits` with a scale for each `block` elements along k."""

    node: gs.Node
    out: int
    k: int
    bits: int
    block: int

    @property
    def weight(self) -> str:
        """The name of the stored codes."""
        return str(self.node.inputs[1].name)

    @property
    def path(self) -> str:
        """The module path, as the exporter recorded it (empty where it did not)."""
        return module_path(self.node)


def find_nbits(model: Model) -> Iterator[NBits]:
    """The MatMulNBits nodes of the main graph, in graph order."""
    return nbits_of(model.graph.nodes)


def nbits_of(nodes: Iterable[gs.Node]) -> Iterator[NBits]:
    """Those among these nodes."""
    for node in nodes:
        if node.op == NBITS and node.domain == ONNXRUNTIME:
            out, k, block = (int(node.attrs.get(key, 0)) for key in ("N", "K", "block_size"))
            yield NBits(node, out, k, int(node.attrs.get("bits", 4)), block)


def rounds_data(found: NBits) -> bool:
    """Whether a MatMulNBits may round its data to INT8, which each session and kind of CPU does in its own places."""
    return int(found.node.attrs.get("accuracy_level", 0)) == _ROUNDS_DATA


def keep_data(model: Model) -> None:
    """Have no MatMulNBits round its data."""
    for found in find_nbits(model):
        found.node.attrs["accuracy_level"] = _KEEPS_DATA


def read_nbits(found: NBits) -> tuple[NDArray[np.int8], Scales]:
    """codes[out, k] and scales of a 4-bit MatMulNBits without zero points."""
    packed = values_of(found.node.inputs[1]).reshape(found.out, -1)
    codes = np.stack([packed & 15, packed >> 4], -1).reshape(found.out, -1)[:, : found.k].astype(np.int8) - _ZERO
    scales = np.asarray(values_of(found.node.inputs[2]), np.float32).reshape(found.out, -1)
    return codes, Scales(scales, 1, found.block)


def write_dequantized(model: Model, site: Site, codes: NDArray[Any], scales: Scales, names: Names) -> str:
    """Put an INT4 initializer and a DequantizeLinear in place of a Linear's weight; returns the initializer's name.

    Args:
        codes: [out, k], -8..7.
        scales: in blocks along k.
        names: those of the model.
    """
    fresh, name = names.fresh, site.name
    kind = site.reads_as
    stored = gs.Constant(fresh(f"{name}_int4"), np.ascontiguousarray(codes.T).astype(_INT4))
    scale = gs.Constant(fresh(f"{name}_scale"), _stored(scales, kind).T.copy())
    back = gs.Variable(fresh(f"{name}_dequantized"), kind, (site.k, site.out))
    attrs = {"axis": 0, "block_size": scales.block}
    node = gs.Node("DequantizeLinear", fresh(f"{name}_DequantizeLinear"), attrs, [stored, scale], [back])
    for number, reader in enumerate(site.readers):
        if number == 0:
            model.graph.nodes.insert(position(model.graph.nodes, reader), node)
        _replace(model, reader, reader.inputs[site.operand(reader)], back)
        if reader.op == "Gemm":
            reader.attrs["transB"] = 0
    return str(stored.name)


def write_nbits(
    model: Model, site: Site, codes: NDArray[Any], scales: Scales, names: Names, accuracy_level: int
) -> str:
    """Make MatMulNBits nodes of a Linear's; returns the name of the stored codes. Arguments as `write_dequantized`."""
    fresh, name = names.fresh, site.name
    pairs = (codes.astype(np.int8) + _ZERO).astype(np.uint8).reshape(site.out, -1, scales.block // 2, 2)
    stored = gs.Constant(fresh(f"{name}_nbits"), pairs[..., 0] | pairs[..., 1] << 4)
    scale = gs.Constant(fresh(f"{name}_scale"), _stored(scales, site.reads_as))
    for reader in site.readers:
        weight = reader.inputs[site.operand(reader)]
        bias = reader.inputs[2] if reader.op == "Gemm" and len(reader.inputs) > 2 else None
        reader.op, reader.domain = NBITS, ONNXRUNTIME
        reader.attrs = {"K": site.k, "N": site.out, "bits": 4, "block_size": scales.block}
        if accuracy_level:
            reader.attrs["accuracy_level"] = accuracy_level
        data = reader.inputs[0]
        _replace(model, reader, weight, stored)
        reader.inputs = [data, stored, scale]
        if bias is not None:
            (out,) = reader.outputs
            product = gs.Variable(fresh(f"{out.name}_product"), out.dtype, out.shape)
            reader.outputs[0] = product
            add = gs.Node("Add", fresh(f"{reader.name}_Add"), {}, [product, bias], [out])
            model.graph.nodes.insert(position(model.graph.nodes, reader) + 1, add)
    if all(entry.domain != ONNXRUNTIME for entry in model.header.opset_import):
        model.header.opset_import.add(domain=ONNXRUNTIME, version=1)
    return str(stored.name)


def _stored(scales: Scales, kind: np.dtype[Any]) -> NDArray[Any]:
    return clamp_scale(scales.values, kind).astype(kind)


def _replace(model: Model, reader: gs.Node, old: gs.Tensor, new: gs.Tensor) -> None:
    """Let `reader` read `new`, and take out what made `old` for it alone."""
    rewire([reader], old, new)
    outputs = {id(tensor) for tensor in model.graph.outputs}
    if not old.outputs and old.inputs and id(old) not in outputs:
        maker = old.inputs[0]
        if all(not tensor.outputs and id(tensor) not in outputs for tensor in maker.outputs):
            prune_node(model, maker)
