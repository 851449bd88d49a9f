"""QuantizeLinear/DequantizeLinear pairs: where they go in a vision transformer, and how they are written.

Where (TensorRT's explicit quantisation, NVIDIA's placement rules):
  - inputs and weights of every site that `graph.exclusions` does not leave out; one pair a tensor, shared by its
    readers (LayerNorm -> q, k, v / fc1)
  - `sparse-int8` only: the output of every pruned site, after its bias: sparse INT8 kernels are INT8 in, INT8 out;
    none where the output is the graph's
  - the operands of both attention products where there are few tokens, after the scale and the transpose; the softmax
    output at a scale that ends at 1 or before: at most 1/127 for INT8
  - never: the residual Add's inputs as such, LayerNorm's and GELU's inputs, the last LayerNorm

How (TensorRT's parser): zero points are present, of the codes' type and zero; scales are positive; activations have one
scale, weights one an output channel as a 1-D tensor plus `axis`, or blocks along the reduction (`block_size`); the
scale's type is the type of the float side; no bias is quantised. Block scales of a float type lie before a DQ of
their own, under one FP32 number; activations of such a format are quantised at run time (`graph.qdq.dynamic`).

Before codes that are not of 8-bit integers, onnxruntime (1.31) drops a Relu without asking where their range ends,
refuses a Clip, and moves a QuantizeLinear up over a MaxPool that takes no such codes. Relu and Clip are written as Max
and Min there, and what a MaxPool gives goes through a Max that changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from gpusq_onnx.graph.dataflow import maker_through
from gpusq_onnx.graph.edits import Names, rewire, unlink
from gpusq_onnx.graph.model import Model, values_of
from gpusq_onnx.graph.operators import MOVES
from gpusq_onnx.graph.qdq.codes import clip_bounds
from gpusq_onnx.graph.qdq.dynamic import DOMAIN, dynamic_nodes
from gpusq_onnx.graph.sites import Site
from gpusq_onnx.graph.trace import channel_axis, operand_view, trace
from gpusq_onnx.graph.views import View
from gpusq_onnx.quant.formats import FORMATS, Format, clamp_scale, lowest_of
from gpusq_onnx.quant.scales import Scales

_INTEGERS = ("int8", "uint8")  # elements of codes that onnxruntime has kernels for
MAX_TOKENS = 512  # longer score matrices are left to the fused FP16 attention kernels


class QdqWriter:
    """Inserts pairs into one graph; nothing is in the node list before `finish`, which keeps topological order.

    Args:
        model: the model to edit.
        types: element types by tensor name; the scale takes the type of what it quantises.
        shapes: shapes by tensor name, where they are known.
    """

    def __init__(
        self, model: Model, types: Mapping[str, np.dtype[Any]], shapes: Mapping[str, Sequence[object]] | None = None
    ) -> None:
        self._model = model
        self._types = types
        self._shapes = shapes or {}
        self._names = Names(model)
        self._fresh = self._names.fresh
        self._after: dict[int, list[gs.Node]] = {}
        self._before: dict[int, list[gs.Node]] = {}
        self._pairs: dict[tuple[str, int | None], gs.Variable] = {}  # by tensor and axis

    def activation(self, tensor: gs.Tensor, scale: float, readers: Iterable[gs.Node], fmt: Format) -> None:
        """Let `readers` read `tensor` through one shared per-tensor pair with this (positive) scale."""
        nodes = [node for node in readers if any(read is tensor for read in node.inputs)]
        place = self._after.setdefault(id(tensor.inputs[0]) if tensor.inputs else 0, [])
        step = np.asarray(scale, self._type(tensor))
        source = self._clipped(tensor, step, fmt, place) if fmt.carried else tensor
        if fmt.element not in _INTEGERS:
            source = self._held(tensor, place)
        rewire(nodes, tensor, self._pair(source, step, {}, fmt, tensor.name, place))

    def dynamic(self, tensor: gs.Tensor, outer: float, readers: Iterable[gs.Node], block: int) -> None:
        """Let `readers` read `tensor` quantised at run time in blocks along its last axis, under this number."""
        nodes = [node for node in readers if any(read is tensor for read in node.inputs)]
        made = gs.Variable(self._names.fresh(f"{tensor.name}_dequantized"), self._type(tensor), tensor.shape)
        place = self._after.setdefault(id(tensor.inputs[0]) if tensor.inputs else 0, [])
        rewire(nodes, tensor, made)
        place.extend(dynamic_nodes(self._names, tensor, outer, block, made))
        if all(entry.domain != DOMAIN for entry in self._model.header.opset_import):
            self._model.header.opset_import.add(domain=DOMAIN, version=1)

    def _clipped(self, tensor: gs.Tensor, scale: NDArray[Any], fmt: Format, place: list[gs.Node]) -> gs.Tensor:
        """A Clip to the ends of a grid that is smaller than the ONNX type that carries it."""
        if (tensor.name, None) in self._pairs:
            return tensor  # its pair is there
        ends = zip(("low", "high"), clip_bounds(scale, fmt.lowest, fmt.largest), strict=True)
        bounds = [gs.Constant(self._fresh(f"{tensor.name}_{end}"), values) for end, values in ends]
        made = gs.Variable(self._fresh(f"{tensor.name}_clipped"), self._type(tensor), getattr(tensor, "shape", None))
        place.append(gs.Node("Clip", self._fresh(f"{tensor.name}_Clip"), {}, [tensor, *bounds], [made]))
        return made

    def _held(self, tensor: gs.Tensor, place: list[gs.Node]) -> gs.Tensor:
        """The tensor, made so that onnxruntime leaves what it comes from as it is; see the module's text."""
        maker = maker_through(tensor, MOVES)
        if maker is not None and maker.op in ("Relu", "Clip"):
            self._without_bounds(maker)
        if maker is None or maker.op != "MaxPool" or (tensor.name, None) in self._pairs:
            return tensor
        kind = self._type(tensor)
        made = gs.Variable(self._fresh(f"{tensor.name}_pooled"), kind, getattr(tensor, "shape", None))
        bound = gs.Constant(self._fresh(f"{tensor.name}_lowest"), lowest_of(kind))
        place.append(gs.Node("Max", self._fresh(f"{tensor.name}_Max"), {}, [tensor, bound], [made]))
        return made

    def _without_bounds(self, node: gs.Node) -> None:
        """Make Max and Min of a Relu or Clip."""
        (x, *ends), tensor = node.inputs, node.outputs[0]
        if node.op == "Relu":
            ends = [gs.Constant(self._fresh(f"{tensor.name}_low"), np.zeros((), self._type(tensor)))]
        bounds = [(op, end) for op, end in zip(("Max", "Min"), ends, strict=False) if end.name]
        for op, end in bounds[:-1]:
            made = gs.Variable(self._fresh(f"{tensor.name}_above"), self._type(tensor), tensor.shape)
            step = gs.Node(op, self._fresh(f"{node.name}_{op}"), {}, [x, end], [made])
            self._before.setdefault(id(node), []).append(step)
            x = made
        for op, end in bounds[-1:]:
            node.op, node.inputs = op, [x, end]

    def weight(self, site: Site, scales: Scales, fmt: Format) -> None:
        """Put a pair before a site's readers: scales of w[out, k], a channel or in blocks; the weight stays float."""
        for reader in site.readers:
            operand = self._matrix(reader, reader.inputs[site.operand(reader)])
            kind = self._type(operand)
            values, attrs = clamp_scale(scales.values, kind).astype(kind), {"axis": channel_axis(reader, operand)}
            if scales.block:
                view = operand_view(reader, site.operand(reader))
                found = trace(operand)
                assert view is not None and found is not None, reader.name
                axis = view.stored_axis(1)
                shape = [n // scales.block if a == axis else n for a, n in enumerate(found.shape)]
                values = np.ascontiguousarray(view.write(values, np.zeros(shape, values.dtype)))
                attrs = {"axis": axis, "block_size": scales.block}
            place = self._before.setdefault(id(reader), [])
            under = scales.outer, fmt.scales
            rewire([reader], operand, self._pair(operand, values, attrs, fmt, site.weight.name, place, under))

    def finish(self) -> None:
        """Put activations' pairs after the activation's producer, weights' pairs before the first reader."""
        nodes = self._after.pop(0, [])
        for node in self._model.graph.nodes:
            nodes.extend(self._before.pop(id(node), []))
            nodes.append(node)
            nodes.extend(self._after.pop(id(node), []))
        self._model.graph.nodes[:] = nodes

    def _matrix(self, reader: gs.Node, operand: gs.Tensor) -> gs.Tensor:
        """The right operand [1, K, N] of a MatMul as [K, N]: with scales a channel, onnxruntime's kernel wants that.

        It stays as it is where its data has fewer dimensions, and the product gets them from it.
        """
        found = trace(operand)
        if reader.op != "MatMul" or found is None or len(found.shape) == 2:
            return operand
        rank = len(found.shape)
        if len(self._shapes.get(reader.inputs[0].name, ())) < rank:
            return operand
        if isinstance(operand, gs.Constant) and len(operand.outputs) == 1:
            operand.values = values_of(operand).reshape(found.shape[-2:])
            return operand
        axes = gs.Constant(self._fresh(f"{operand.name}_axes"), np.arange(rank - 2))
        matrix = gs.Variable(self._fresh(f"{operand.name}_matrix"), self._type(operand), found.shape[-2:])
        squeeze = gs.Node("Squeeze", self._fresh(f"{operand.name}_Squeeze"), {}, [operand, axes], [matrix])
        self._before.setdefault(id(reader), []).append(squeeze)
        rewire([reader], operand, matrix)
        return matrix

    def _pair(
        self,
        tensor: gs.Tensor,
        scale: NDArray[Any],
        attrs: Mapping[str, int],
        fmt: Format,
        stem: str,
        place: list[gs.Node],
        under: tuple[float | None, str] = (None, ""),
    ) -> gs.Variable:
        key = (stem if not attrs else tensor.name), attrs.get("axis")
        if key in self._pairs:
            return self._pairs[key]
        shape = getattr(tensor, "shape", None)
        kind = onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.DataType.Value(fmt.element.upper()))
        factor = self._factor(scale, stem, place, *under)
        zero = gs.Constant(self._fresh(f"{stem}_zero_point"), np.zeros(scale.shape, kind))
        codes = gs.Variable(self._fresh(f"{stem}_quantized"), kind, shape)
        back = gs.Variable(self._fresh(f"{stem}_dequantized"), self._type(tensor), shape)
        quantize = self._fresh(f"{stem}_QuantizeLinear")
        dequantize = self._fresh(f"{stem}_DequantizeLinear")
        place.extend(
            [
                gs.Node("QuantizeLinear", quantize, dict(attrs), [tensor, factor, zero], [codes]),
                gs.Node("DequantizeLinear", dequantize, dict(attrs), [codes, factor, zero], [back]),
            ]
        )
        self._pairs[key] = back
        return back

    def _factor(
        self, scale: NDArray[Any], stem: str, place: list[gs.Node], outer: float | None, inner: str
    ) -> gs.Tensor:
        """The tensor of scales: an initializer, or what a DequantizeLinear makes of small floats under one number."""
        if outer is None:
            return gs.Constant(self._fresh(f"{stem}_scale"), scale)
        small = gs.Constant(self._fresh(f"{stem}_block_scales"), scale.astype(FORMATS[inner].dtype))
        over = gs.Constant(self._fresh(f"{stem}_scale"), np.asarray(outer, np.float32))
        made = gs.Variable(self._fresh(f"{stem}_block_scales_dequantized"), np.dtype(np.float32), scale.shape)
        place.append(gs.Node("DequantizeLinear", self._fresh(f"{made.name}_node"), {}, [small, over], [made]))
        return made

    def _type(self, tensor: gs.Tensor) -> np.dtype[Any]:
        declared = getattr(tensor, "dtype", None)
        return self._types.get(tensor.name) or np.dtype(np.float32 if declared is None else declared)


def store_codes(model: Model, site: Site, codes: NDArray[Any], names: Names) -> list[str]:
    """Replace a float weight before its pairs by codes[out, k] before the DQ alone: the small form on disk.

    The codes are stored as the site's readers see them, so that what laid the float weight out (Transpose, Split, ...)
    goes where nothing else reads it. Readers that see them alike share one initializer.

    Args:
        names: those of the model.

    Returns:
        The names of the new initializers, one for each layout; the site's new names.
    """
    made: dict[tuple[View, tuple[int, ...]], gs.Constant] = {}
    for reader in site.readers:
        operand = site.operand(reader)
        seen, view = trace(reader.inputs[operand]), operand_view(reader, operand)
        dequantize = reader.inputs[operand].inputs[0]
        quantize = dequantize.inputs[0].inputs[0] if dequantize.inputs[0].inputs else None
        if quantize is None or seen is None or view is None:
            continue  # an earlier reader shares the pair
        if (view, seen.shape) not in made:
            kind = values_of(dequantize.inputs[2]).dtype
            stored = np.ascontiguousarray(view.write(codes, np.zeros(seen.shape, codes.dtype)))
            made[view, seen.shape] = gs.Constant(names.fresh(f"{site.weight.name}_{kind.name}"), stored.astype(kind))
        dequantize.inputs[0] = made[view, seen.shape]
        if dequantize.attrs.get("block_size", 0):
            del dequantize.inputs[2]  # as many zeros as blocks; a DequantizeLinear knows its type from the codes
        prune_node(model, quantize)
    return [str(constant.name) for constant in made.values()]


def prune_node(model: Model, node: gs.Node) -> None:
    """Take a node out, and with it what was made for it alone."""
    makers = [tensor.inputs[0] for tensor in node.inputs if tensor.inputs]
    unlink(node)
    model.graph.nodes[:] = [other for other in model.graph.nodes if other is not node]
    kept = {id(tensor) for tensor in model.graph.outputs}
    for maker in makers:
        if all(not tensor.outputs and id(tensor) not in kept for tensor in maker.outputs):
            prune_node(model, maker)
