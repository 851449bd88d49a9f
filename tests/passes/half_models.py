"""The embedded model in a 16-bit float type, as `torch.onnx.export(model.half())` writes it."""

from pathlib import Path

import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper


def retyped(source: Path, target: Path, kind: int, opset: int = 22) -> Path:
    """`source` with every float32 tensor, attribute, input and output as `kind`, written to `target`."""
    model, dtype = onnx.load_model(str(source)), helper.tensor_dtype_to_np_dtype(kind)
    attributes = [attribute for node in model.graph.node for attribute in node.attribute]
    tensors = [attribute.t for attribute in attributes if attribute.type == AttributeProto.TENSOR]
    for tensor in (*model.graph.initializer, *tensors):
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = kind
    for attribute in attributes:
        if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = kind
    del model.graph.value_info[:]
    if kind == TensorProto.BFLOAT16:  # Conv takes it from opset 22 on
        model.opset_import[0].version = max(opset, model.opset_import[0].version)
    onnx.save_model(model, str(target))
    return target
