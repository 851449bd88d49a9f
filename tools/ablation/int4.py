"""An INT8 QDQ model as an INT4 one: the same pairs in the same places, 4-bit codes, wider steps.

TensorRT runs no INT4 activations (see the facts on 4 bits), so no pass writes this: it is the arithmetic of the paper's
INT4 columns, for training and scoring here. Weight scales are chosen again by `qat`; an activation's range is cut to
half of what INT8 covered, since sixteen levels over the whole of it leave most values on zero or one.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, numpy_helper

INT4_SINCE = 21  # opset
RATIO = 127 / 7 / 2
WEIGHT_RATIO = 127 / 7


def to_int4(source: Path, target: Path) -> None:
    """Write `source` with every zero point of type INT4, and scales to match."""
    model = onnx.load(source)
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    pairs = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    weights = {node.input[1] for node in pairs if node.op_type == "QuantizeLinear" and node.input[0] in initializers}
    for name in {node.input[2] for node in pairs}:
        zero = initializers[name]
        zero.CopyFrom(onnx.helper.make_tensor(name, TensorProto.INT4, zero.dims, [0] * max(1, _size(zero))))
    for name in {node.input[1] for node in pairs}:
        scale = initializers[name]
        values = numpy_helper.to_array(scale) * (WEIGHT_RATIO if name in weights else RATIO)
        scale.CopyFrom(numpy_helper.from_array(values.astype("float32"), name))
    del model.graph.value_info[:]
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = max(entry.version, INT4_SINCE)
    onnx.save(model, target)


def _size(tensor: TensorProto) -> int:
    count = 1
    for dim in tensor.dims:
        count *= dim
    return count
