"""QuantizeLinear/DequantizeLinear pairs: where they go in a vision transformer, and how they are written.

Where (TensorRT's explicit quantisation, NVIDIA's placement rules):
  - inputs and weights of every site that `graph.exclusions` does not leave out; one pair a tensor, shared by its
    readers (LayerNorm -> q, k, v / fc1)
  - `sparse-int8` only: the output of every pruned site, after its bias: sparse INT8 kernels are INT8 in, INT8 out
  - the operands of both attention products where there are few tokens, behind the scale and the transpose; the softmax
    output at scale 1/127, since it ends at 1
  - never: the residual Add's inputs as such, LayerNorm's and GELU's inputs, the last LayerNorm

How (TensorRT's parser): zero points are present, INT8 and zero; scales are positive; activations have one scale,
weights one an output channel as a 1-D tensor plus `axis`; the scale's type is the type of the float side; no bias is
quantised.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from gpusq_onnx.graph.edits import rewire, unlink
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.naming import Names
from gpusq_onnx.graph.sites import Site
from gpusq_onnx.graph.trace import channel_axis

SOFTMAX_SCALE = 1.0 / 127.0
MAX_TOKENS = 512  # longer score matrices are left to the fused FP16 attention kernels


class QdqWriter:
    """Inserts pairs into one graph; nothing is in the node list before `finish`, which keeps topological order.

    Args:
        model: the model to edit.
        types: element types by tensor name; the scale takes the type of what it quantises.
    """

    def __init__(self, model: Model, types: Mapping[str, np.dtype[Any]]) -> None:
        self._model = model
        self._types = types
        self._fresh = Names(model).fresh
        self._behind: dict[int, list[gs.Node]] = {}
        self._before: dict[int, list[gs.Node]] = {}
        self._pairs: dict[str, gs.Variable] = {}

    def activation(self, tensor: gs.Tensor, scale: float, readers: Iterable[gs.Node]) -> None:
        """Let `readers` read `tensor` through one shared per-tensor pair with this (positive) scale."""
        nodes = [node for node in readers if any(read is tensor for read in node.inputs)]
        place = self._behind.setdefault(id(tensor.inputs[0]) if tensor.inputs else 0, [])
        pair = self._pair(tensor, np.asarray(scale, self._type(tensor)), None, tensor.name, place)
        rewire(nodes, tensor, pair)

    def weight(self, site: Site, scale: NDArray[np.float32]) -> None:
        """Put a per-output-channel pair (scale[out], positive) in front of a site's readers; the weight stays float."""
        for reader in site.readers:
            operand = reader.inputs[site.operand(reader)]
            axis = channel_axis(reader, operand)
            place = self._before.setdefault(id(reader), [])
            pair = self._pair(operand, scale.astype(self._type(operand)), axis, site.weight.name, place)
            rewire([reader], operand, pair)

    def finish(self) -> None:
        """Put activations' pairs behind the activation's producer, weights' pairs in front of the first reader."""
        nodes = self._behind.pop(0, [])
        for node in self._model.graph.nodes:
            nodes.extend(self._before.pop(id(node), []))
            nodes.append(node)
            nodes.extend(self._behind.pop(id(node), []))
        self._model.graph.nodes[:] = nodes

    def _pair(
        self, tensor: gs.Tensor, scale: NDArray[Any], axis: int | None, stem: str, place: list[gs.Node]
    ) -> gs.Variable:
        if tensor.name in self._pairs:
            return self._pairs[tensor.name]
        shape = getattr(tensor, "shape", None)
        factor = gs.Constant(self._fresh(f"{stem}_scale"), scale)
        zero = gs.Constant(self._fresh(f"{stem}_zero_point"), np.zeros(scale.shape, np.int8))
        codes = gs.Variable(self._fresh(f"{stem}_quantized"), np.int8, shape)
        back = gs.Variable(self._fresh(f"{stem}_dequantized"), self._type(tensor), shape)
        attrs = {} if axis is None else {"axis": axis}
        quantize = self._fresh(f"{stem}_QuantizeLinear")
        dequantize = self._fresh(f"{stem}_DequantizeLinear")
        place.extend(
            [
                gs.Node("QuantizeLinear", quantize, dict(attrs), [tensor, factor, zero], [codes]),
                gs.Node("DequantizeLinear", dequantize, dict(attrs), [codes, factor, zero], [back]),
            ]
        )
        self._pairs[tensor.name] = back
        return back

    def _type(self, tensor: gs.Tensor) -> np.dtype[Any]:
        declared = getattr(tensor, "dtype", None)
        return self._types.get(tensor.name) or np.dtype(np.float32 if declared is None else declared)


def store_codes(model: Model, site: Site, codes: NDArray[np.int8]) -> None:
    """Replace a float weight behind its pair by INT8 codes[out, k] behind the DQ alone: the small form on disk.

    Only for a weight whose one reader is the pair (`QdqWriter.weight` on an untransposed initializer).
    """
    (quantize,) = site.weight.outputs
    stored = np.ascontiguousarray(site.view.write(codes, np.zeros(site.weight.shape, np.int8)))
    quantize.outputs[0].outputs[0].inputs[0] = gs.Constant(Names(model).fresh(f"{site.weight.name}_int8"), stored)
    unlink(quantize)
    model.graph.nodes[:] = [node for node in model.graph.nodes if node is not quantize]
