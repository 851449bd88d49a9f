"""bfloat16 to float32: each value stays what it is, and onnxruntime's CPU kernels compute it.

Exporters write models in bfloat16 whose operators take none at their opset (Conv before 22), and no CPU kernel of
onnxruntime computes it. Weights, constants and inner tensors become float32, as do the graph's inputs and outputs;
what names the type (Cast, ConstantOfShape, a random generator) names the other one. `fp16` halves it again.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_graphsurgeon as gs
from onnx import AttributeProto, NodeProto, TensorProto, numpy_helper

from gpusq_onnx.graph.element_types import TYPE_ATTRIBUTES, names_type, rename_type
from gpusq_onnx.graph.model import Model, data_type_of, values_of

_BF16, _FLOAT = TensorProto.BFLOAT16, TensorProto.FLOAT


def holds_bfloat16(model: Model) -> bool:
    """Whether a weight, a constant, an input or an output is bfloat16, or a node makes it."""
    if names_type(model.frame, _BF16) or any(_named(node) for graph in _levels(model) for node in graph.nodes):
        return True
    return any(data_type_of(c) == _BF16 for c in (*model.constants(), *model.inner_constants()))


def widen(model: Model) -> None:
    """Make every bfloat16 tensor of the model float32."""
    for constant in (*model.constants(), *model.inner_constants()):
        if data_type_of(constant) == _BF16:
            constant.values = values_of(constant).astype(np.float32)
    for graph in _levels(model):
        for tensor in graph.tensors().values():
            if isinstance(tensor, gs.Variable) and tensor.dtype is not None and _names(tensor.dtype):
                tensor.dtype = np.float32
        for node in graph.nodes:
            for key in _named(node):
                value = node.attrs[key]
                node.attrs[key] = int(_FLOAT) if isinstance(value, int) else _widened(value)
    for node in model.graph.nodes:
        _widen_bodies(node)
    rename_type(model.frame, _BF16, _FLOAT)


def _levels(model: Model) -> Iterable[gs.Graph]:
    return (model.graph, *model.graph.subgraphs(recursive=True))


def _named(node: gs.Node) -> list[str]:
    """The attributes that name bfloat16, or hold a tensor of it."""
    return [
        key
        for key, value in node.attrs.items()
        if (key in TYPE_ATTRIBUTES and isinstance(value, int) and value == _BF16)
        or (isinstance(value, gs.Constant) and _stored_type(value) == _BF16)
    ]


def _stored_type(constant: gs.Constant) -> int:
    tensor = getattr(constant._values, "tensor", None)  # not loaded yet; its `dtype` would warn of bfloat16
    return data_type_of(constant) if tensor is None else int(tensor.data_type)


def _widened(constant: gs.Constant) -> gs.Constant:
    tensor = getattr(constant._values, "tensor", None)
    values = values_of(constant) if tensor is None else numpy_helper.to_array(tensor)
    return gs.Constant(constant.name, values.astype(np.float32))


def _names(dtype: object) -> bool:
    return dtype == _BF16 if isinstance(dtype, int) else np.dtype(dtype).name == "bfloat16"  # type: ignore[call-overload]


def _widen_bodies(node: gs.Node) -> None:
    """The bodies of an If, a Loop, a Scan: they are written as they came (`graph.origin`), so they are edited there."""
    origin: NodeProto | None = getattr(node, "origin", None)
    if origin is None or not any(attribute.type == AttributeProto.GRAPH for attribute in origin.attribute):
        return
    node.origin = NodeProto()
    node.origin.CopyFrom(origin)  # clones of the model share it
    for attribute in node.origin.attribute:
        if attribute.type == AttributeProto.GRAPH:
            rename_type(attribute.g, _BF16, _FLOAT, _wide)


def _wide(tensor: TensorProto) -> TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
