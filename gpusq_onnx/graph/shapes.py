"""Types and shapes of every tensor, inferred without loading the weights.

ONNX shape inference with data propagation, on the model's skeleton (large initializers are typed inputs there). A
dimension is a number, a name, or None where inference does not know it.

Limits: legacy exports compute their shapes in the graph; dimensions after data-dependent arithmetic (NonZero, TopK of
a dynamic k) stay unknown, and callers treat unknown as unknown; `runtime.observed` looks in a run.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, shape_inference

from gpusq_onnx.errors import UnsupportedModelError
from gpusq_onnx.graph.element_types import names_type, rename_type
from gpusq_onnx.graph.fresh import beside
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.operators import ONNXRUNTIME
from gpusq_onnx.graph.qdq.dynamic import without_dynamic
from gpusq_onnx.graph.snapshot import Snapshot, take

Dim = int | str | None
Shapes = dict[str, tuple[Dim, ...]]
Types = dict[str, np.dtype[Any]]

_LIKE_THE_FIRST = frozenset(
    "SkipLayerNormalization SkipSimplifiedLayerNormalization BiasGelu FastGelu Gelu QuickGelu Attention".split()
)  # of onnxruntime: outputs as the first input, statistics aside
_TRANSPOSED = ("transA", "transB", "transBatchA", "transBatchB")
_BF16, _FP16 = TensorProto.BFLOAT16, TensorProto.FLOAT16


def infer_shapes(model: Model, *, one_image: bool = True, snapshot: Snapshot | None = None) -> tuple[Shapes, Types]:
    """Shapes and element types by tensor name; for one image, a dynamic first dimension of an input counts as 1.

    A tensor of unknown rank has no shape, one of unknown type no type.

    Args:
        snapshot: of the model as it is; None: it is taken.

    Raises:
        UnsupportedModelError: the graph contradicts itself (inference names the node).
    """
    skeleton = (snapshot or take(model)).skeleton()
    fed = {spec.name for spec in model.inputs()}
    for value in skeleton.graph.input:
        dims = value.type.tensor_type.shape.dim
        if one_image and value.name in fed and len(dims) and not dims[0].HasField("dim_value"):
            dims[0].dim_value = 1
    del skeleton.graph.value_info[:]
    for name, kind in model.typed.items():
        number = onnx.helper.np_dtype_to_tensor_dtype(kind)
        skeleton.graph.value_info.append(onnx.helper.make_tensor_value_info(name, number, None))
    _spell_out(skeleton.graph)
    without_dynamic(skeleton.graph)
    try:
        inferred = _inferred(skeleton)
    except (onnx.shape_inference.InferenceError, onnx.onnx_cpp2py_export.checker.ValidationError) as error:
        raise UnsupportedModelError(
            "the graph's shapes or types contradict each other",
            found=str(error).strip().splitlines()[0],
            hint="onnx.checker.check_model(path, full_check=True) shows the whole message",
        ) from None
    shapes, types = _collect(inferred.graph)
    return shapes | (_of_one_image(model, shapes) if one_image else {}), types


def rank_of(tensor: gs.Tensor, shapes: Shapes) -> int | None:
    """How many axes a tensor has; None: not known."""
    shape = shapes.get(tensor.name)
    return None if shape is None else len(shape)


def images_of(model: Model, shapes: Shapes) -> int:
    """How many images shapes are of: the size that all inputs fix on their first axis and an output keeps, else 1."""
    leading = {spec.shape[0] if spec.shape else None for spec in model.inputs()}
    kept = {shape[0] for spec in model.outputs() if (shape := shapes.get(spec.name))}
    (size,) = leading if len(leading) == 1 else (None,)
    return size if isinstance(size, int) and size > 0 and size in kept else 1


def _inferred(skeleton: ModelProto) -> ModelProto:
    """Of a model in bfloat16 whose operators take none at their opset, what holds for float16 in its place."""
    brain = names_type(skeleton.graph, _BF16) and not names_type(skeleton.graph, _FP16)
    if brain:
        rename_type(skeleton.graph, _BF16, _FP16)
    inferred = shape_inference.infer_shapes(skeleton, check_type=True, data_prop=True)
    if brain:
        rename_type(inferred.graph, _FP16, _BF16)
    return inferred


def _spell_out(graph: GraphProto) -> None:
    """Put ONNX's operators of the same shapes in place of onnxruntime's, of which ONNX knows none."""
    if all(node.domain != ONNXRUNTIME for node in graph.node):
        return
    kinds = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    kinds |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    nodes: list[NodeProto] = []
    names = beside(graph)
    for node in graph.node:
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        if node.domain != ONNXRUNTIME:
            nodes.append(node)
        elif node.op_type == "MatMulNBits":
            name, shape = names.fresh(f"{node.name}_matrix"), [attributes.get("K"), attributes.get("N")]
            graph.input.append(onnx.helper.make_tensor_value_info(name, kinds.get(node.input[2], 0), shape))
            nodes.append(onnx.helper.make_node("MatMul", [node.input[0], name], node.output, node.name))
        elif node.op_type == "FusedMatMul" and not any(attributes.get(name) for name in _TRANSPOSED):
            nodes.append(onnx.helper.make_node("MatMul", node.input, node.output, node.name))
        elif node.op_type in _LIKE_THE_FIRST and "qkv_hidden_sizes" not in attributes:
            like = [node.output[place] for place in (0, 3) if node.output[place : place + 1] not in ([], [""])]
            nodes += [onnx.helper.make_node("Identity", node.input[:1], [name], f"{node.name}_{name}") for name in like]
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _of_one_image(model: Model, shapes: Shapes) -> Shapes:
    """What a run has shown (`Model.observed`) of tensors whose shape inference does not know whole."""
    unclear = {name: shapes.get(name, (None,)) for name in model.observed}
    return {name: model.observed[name] for name, dims in unclear.items() if not all(isinstance(d, int) for d in dims)}


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether a type is a float of 16 bits or more; numpy counts bfloat16 among the types that it does not know."""
    return dtype.kind == "f" or dtype.name == "bfloat16"


def _collect(graph: GraphProto) -> tuple[Shapes, Types]:
    shapes: Shapes = {}
    types: Types = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if kind.elem_type:
            types[value.name] = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
        if value.type.HasField("tensor_type") and kind.HasField("shape"):
            shapes[value.name] = tuple(
                d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in kind.shape.dim
            )
    for tensor in graph.initializer:
        shapes[tensor.name] = tuple(tensor.dims)
        types[tensor.name] = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    return shapes, types
