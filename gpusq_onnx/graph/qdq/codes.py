"""What Q/DQ nodes make of a site: its formats, its weight's scales and its codes, read from the graph.

The format of a weight is that of its QuantizeLinear's ONNX type, or a narrower one that the type carries: codes that
are all within 7 are a 4-bit weight in an INT8 tensor (`quant.formats.format_of`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from gpusq_onnx.errors import UnsupportedModelError
from gpusq_onnx.graph.model import values_of
from gpusq_onnx.graph.operators import QDQ
from gpusq_onnx.graph.qdq.quantize_nodes import activation_format, is_grid_clip
from gpusq_onnx.graph.sites import Site, before_qdq
from gpusq_onnx.graph.trace import trace, view_from
from gpusq_onnx.graph.wording import node_label
from gpusq_onnx.quant.formats import FORMATS, Format, clamp_scale, dequantize, format_of, natural, quantize
from gpusq_onnx.quant.scales import Scales
from gpusq_onnx.quant.schemes import Quantised

_FIRST_ROWS = 4  # they show that a weight uses its whole type


def quantised(site: Site) -> Quantised:
    """The formats of a site's weight, input and output; None for float, and for types that no format has."""
    return Quantised(weight_format(site), input_format(site), _output_format(site))


def weight_format(site: Site) -> Format | None:
    """The format of a site's weight."""
    element = site.code_type
    widest = natural(element) if element else None
    if widest is None or all(row.element != element or row is widest for row in FORMATS.values()):
        return widest
    first = format_of(element, codes_of(site, rows=_FIRST_ROWS))
    return first if first is widest else format_of(element, codes_of(site))


def float_format(site: Site) -> Format:
    """The float type that the product has without quantising: the weight's, after a Cast or a scale that restores it.

    A weight of codes with no scale (an integer MatMul) counts as FP32.
    """
    last = next((node for node in site.trail if node.op in ("Cast", "DequantizeLinear")), None)
    if last is None or last.op == "Cast":
        element = site.dtype if last is None else onnx.TensorProto.DataType.Name(last.attrs["to"]).lower()
    else:
        name = np.dtype(last.inputs[1].dtype).name
        element = _ELEMENTS.get(name, name)
    fmt = natural(element)
    return fmt if fmt is not None and fmt.stored else FORMATS["fp32"]


_ELEMENTS = {"float32": "float", "float64": "double"}  # numpy's names, ONNX's


def input_format(site: Site) -> Format | None:
    """The format of a site's input, where every reader's data comes through a pair; the first reader's."""
    pairs = [tensor for node in site.readers for tensor in _data(site, node)]
    if not pairs or any(before_qdq(tensor) is tensor for tensor in pairs):
        return None
    return activation_format(pairs[0].inputs[0].inputs[0].inputs[0])


def store_on_grid(site: Site, fmt: Format) -> None:
    """Store a float weight before its pair as what the pair makes of it: the model computes the same, to the bit.

    So the codes can be found again in the file (`graph.pack.archive`), and stay within a grid that its ONNX type
    carries. A weight that others read, too, stays as it is: its scales grow until such a grid holds its codes.
    """
    if site.quantised != "qdq":
        return
    w, scales = np.asarray(site.read(), np.float32), weight_scales_of(site)
    if site.conflicts:
        if fmt.carried and not fmt.holds(codes_of(site)):
            least = np.abs(w).max(axis=None if scales.axis is None else 1) / np.float32(fmt.largest)
            set_weight_scales(site, replace(scales, values=np.maximum(scales.values, least)))
        return
    site.write(dequantize(quantize(w, scales, fmt), scales).astype(site.weight.dtype, copy=False))


def clip_bounds(scale: NDArray[Any], lowest: float, largest: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """The ends of the Clip before a pair whose ONNX type holds more than its format, in the type of the scale."""
    step = scale.astype(np.float32)
    return np.asarray(np.float32(lowest) * step, scale.dtype), np.asarray(np.float32(largest) * step, scale.dtype)


def _output_format(site: Site) -> Format | None:
    """The format of a site's outputs, where every one is read through pairs alone; the first one's."""
    readers = [node for output in site.outputs for node in output.outputs]
    quantisers = [node.outputs[0].outputs[0] if is_grid_clip(node) else node for node in readers]
    if site.given or not readers or any(node.op != "QuantizeLinear" for node in quantisers):
        return None
    return activation_format(quantisers[0])


def _data(site: Site, node: gs.Node) -> list[Any]:
    """The operands of a reader that do not come from the site's weight."""
    trail = {id(step) for step in site.trail}
    return [t for t in node.inputs[:2] if t is not site.weight and not any(id(step) in trail for step in t.inputs)]


def weight_scales_of(site: Site) -> Scales:
    """The scales of a quantised site's weight along w[out, k]: one, one an output channel, or in blocks along k.

    Those along the reduction (`graph.qdq.axes`) are blocks of one.

    Raises:
        UnsupportedModelError: one is not a positive number, or they do not fit the weight.
    """
    node = next(node for node in site.trail if node.op == "DequantizeLinear")
    values, outer = _scale_values(node.inputs[1])
    if not (np.isfinite(values).all() and (values > 0).all() and (outer is None or 0 < outer < np.inf)):
        raise UnsupportedModelError(
            f"the weight {site.name!r} has a scale that is no positive number",
            where=node_label(node),
            found=f"{float(values.min()):g} to {float(values.max()):g}",
            hint="quantise the float model again",
        )
    block = int(node.attrs.get("block_size", 0))
    if values.size == 1 and not block:
        return Scales(values.reshape(1), axis=0) if values.ndim and site.out == 1 else Scales(values.reshape(()))
    view = view_from(node.outputs[0], site.readers[0], site.operand(site.readers[0]))
    if block and values.ndim > 1:
        return Scales(view.read(values), 1, block, outer)
    each = view.read(_along(node, values))
    if view.stored_axis(0) == _axis(node, values):
        return Scales(np.ascontiguousarray(each[:, 0]), axis=0)
    return Scales(each, 1, 1)


def _axis(node: gs.Node, values: NDArray[Any]) -> int:
    """The axis along which the scales of a DequantizeLinear of a constant lie, counted from the front."""
    found = trace(node.outputs[0])
    rank = 0 if found is None else len(found.shape)
    return int(node.attrs.get("axis", 1)) % max(1, rank) if values.ndim == 1 else values.shape.index(max(values.shape))


def _along(node: gs.Node, values: NDArray[Any]) -> NDArray[Any]:
    """Scales without blocks, one for each element of what a DequantizeLinear makes; no memory is taken for them."""
    found, axis = trace(node.outputs[0]), _axis(node, values)
    shape = () if found is None else found.shape
    laid = values.reshape([-1 if place == axis else 1 for place in range(len(shape))]) if values.ndim == 1 else values
    try:
        return np.broadcast_to(laid, shape)
    except ValueError:
        raise UnsupportedModelError(
            "the scales of a weight do not fit its shape",
            where=node_label(node),
            expected=f"one, or one for each of axis {axis} of {shape}",
            found=f"{values.shape}",
            hint="quantise the float model again",
        ) from None


def set_weight_scales(site: Site, scales: Scales) -> Scales:
    """Give the pairs of a quantised weight other scales, of the kind they have; returns them as they are stored.

    A scale in a type of few bits is rounded to it, so that what is computed with the answer is what the file says.
    """
    for reader in site.readers:
        dequantize = reader.inputs[site.operand(reader)].inputs[0]
        while dequantize.op != "DequantizeLinear":
            dequantize = dequantize.inputs[0].inputs[0]
        scale = dequantize.inputs[1]
        target = scale.inputs[0].inputs[0] if scale.inputs else scale
        stored = values_of(target)
        seen = scales.values if scales.outer is not None else clamp_scale(scales.values, stored.dtype)
        values = seen.astype(stored.dtype)
        if scales.block:
            view = view_from(dequantize.outputs[0], reader, site.operand(reader))
            values = np.ascontiguousarray(view.write(values, np.zeros(stored.shape, stored.dtype)))
        values = values.reshape(stored.shape)
        if scale.inputs:  # Q and DQ share what makes their scales
            over = scale.inputs[0].inputs[1]
            target.values, over.values = values, np.asarray(scales.outer, values_of(over).dtype).reshape(over.shape)
            continue
        for node in (dequantize, *dequantize.inputs[0].inputs):
            node.inputs[1].values = values
    return weight_scales_of(site)


def scales_of(node: gs.Node) -> Scales:
    """The scales of a QuantizeLinear or DequantizeLinear of a constant, as they lie along its tensor."""
    values, outer = _scale_values(node.inputs[1])
    if values.ndim == 0 or (values.size == 1 and not node.attrs.get("block_size", 0)):
        return Scales(values.reshape(()), outer=outer)
    return Scales(values, int(node.attrs.get("axis", 1)), int(node.attrs.get("block_size", 0)), outer)


def scales_another(node: gs.Node) -> bool:
    """Whether what a DequantizeLinear makes is the scale of another Q or DQ."""
    (made,) = node.outputs
    return any(t is made for r in made.outputs if r.op in QDQ for t in r.inputs[1:2])


def _scale_values(scale: gs.Tensor) -> tuple[NDArray[np.float32], float | None]:
    """A scale's values, and the one over them where it is dequantised itself."""
    if scale.inputs and scale.inputs[0].op == "DequantizeLinear":
        inner = scale.inputs[0]
        return np.asarray(values_of(inner.inputs[0]), np.float32), float(
            np.asarray(values_of(inner.inputs[1])).reshape(())
        )
    return np.asarray(values_of(scale), np.float32), None


def codes_of(site: Site, rows: int | None = None) -> NDArray[Any]:
    """The codes[out, k] of a quantised site, as TensorRT computes them when it builds; the first `rows` of them."""
    values = site.read()[:rows]
    if site.quantised != "qdq":
        return values
    fmt, scales = natural(site.code_type), weight_scales_of(site)
    assert fmt is not None, site.code_type
    if scales.axis == 0 or scales.block:
        scales = Scales(scales.values[:rows], scales.axis, scales.block, scales.outer)
    return quantize(np.asarray(values, np.float32), scales, fmt)
