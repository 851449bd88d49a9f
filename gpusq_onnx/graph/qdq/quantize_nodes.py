"""What a QuantizeLinear writes: its ONNX type, and the format, which a Clip before it can make narrower.

A Clip to the ends of a grid that is smaller than the ONNX type which carries it (4-bit values in INT8) belongs to the
pair: walks through a graph pass it as they pass the pair. Any other Clip is an activation function, ReLU6 say.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from gpusq_onnx.graph.model import type_name, values_of
from gpusq_onnx.graph.operators import QDQ
from gpusq_onnx.graph.qdq.dynamic import FORMAT, is_dynamic
from gpusq_onnx.quant.formats import Format, format_of, natural


def code_type(quantize: gs.Node) -> str:
    """The ONNX name of the type that a QuantizeLinear, or a node that quantises at run time, writes, in lower case."""
    if is_dynamic(quantize):
        return FORMAT.element
    zero = quantize.inputs[2] if len(quantize.inputs) > 2 else None
    if isinstance(zero, gs.Constant):
        return type_name(zero)
    declared = quantize.attrs.get("output_dtype", 0) or onnx.TensorProto.UINT8
    return str(onnx.TensorProto.DataType.Name(declared)).lower()


def activation_format(quantize: gs.Node) -> Format | None:
    """The format of an activation's QuantizeLinear; a Clip before it that ends at a narrower grid makes it that."""
    element, clip = code_type(quantize), _clip_before(quantize)
    if clip is None:
        return natural(element)
    scale = float(np.asarray(values_of(quantize.inputs[1]), np.float32).reshape(-1)[0])
    ends = [float(np.asarray(values_of(bound), np.float32).reshape(-1)[0]) / scale for bound in clip.inputs[1:3]]
    return format_of(element, np.rint(np.asarray(ends)))


def is_zero_point(constant: gs.Constant) -> bool:
    """Whether all that read it are QuantizeLinear and DequantizeLinear, as what zero is."""
    return all(node.op in QDQ and constant in node.inputs[2:] for node in constant.outputs)


def is_grid_clip(node: gs.Node) -> bool:
    """Whether a node is a Clip to a narrower grid, and QuantizeLinears alone read it."""
    readers = node.outputs[0].outputs if node.op == "Clip" else []
    formats = [activation_format(reader) if reader.op == "QuantizeLinear" else None for reader in readers]
    return bool(formats) and all(fmt is not None and fmt.carried for fmt in formats)


def _clip_before(quantize: gs.Node) -> gs.Node | None:
    made = quantize.inputs[0].inputs
    if not made or made[0].op != "Clip" or len(made[0].inputs) != 3:
        return None
    return (
        made[0] if all(isinstance(bound, gs.Constant) for bound in (*made[0].inputs[1:], quantize.inputs[1])) else None
    )
