"""Small ONNX models for the tests of `gpusq_onnx.graph`: built by hand, run by onnxruntime as they are."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from gpusq_onnx.graph import io
from gpusq_onnx.graph.model import Model, from_proto
from gpusq_onnx.graph.opset import raise_opset
from gpusq_onnx.runtime.ort import Session

Array = NDArray[Any]
Value = tuple[str, int, Sequence[int | str | None]]

FLOAT, HALF, INT8, INT64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8, TensorProto.INT64


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def normal(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Array:
    return rng(seed).standard_normal(shape).astype(dtype)


def node(op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> NodeProto:
    name = attributes.pop("name", f"{op}_{outputs[0]}")
    return helper.make_node(op, inputs, outputs, name=name, **attributes)


def graph(
    nodes: Sequence[NodeProto], inputs: Sequence[Value], outputs: Sequence[Value], constants: Mapping[str, Array]
) -> GraphProto:
    return helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )


def proto(
    nodes: Sequence[NodeProto],
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    constants: Mapping[str, Array] | None = None,
    opset: int = 21,
) -> ModelProto:
    made = helper.make_model(
        graph(nodes, inputs, outputs, constants or {}), opset_imports=[helper.make_opsetid("", opset)]
    )
    made.ir_version = 10 if opset <= 23 else 11
    return made


def model(made: ModelProto) -> Model:
    """As `io.load` makes it, without a file."""
    copy = ModelProto()
    copy.CopyFrom(made)
    raise_opset(copy)
    return from_proto(copy, None)


def run(made: ModelProto | Model | Path, feed: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs in onnxruntime, every node as written."""
    if isinstance(made, Model):
        made = onnx.load_from_string(io.to_bytes(made))
    source = made if isinstance(made, Path) else made.SerializeToString()
    return Session(source, optimize=False, threads=1).run(feed)


def initializer(made: ModelProto | Model, name: str) -> Array:
    if isinstance(made, Model):
        made = onnx.load_from_string(io.to_bytes(made))
    return numpy_helper.to_array(next(t for t in made.graph.initializer if t.name == name))


def text(made: Model) -> str:
    """The graph as sorted text: one line a node and an initializer, values by shape, type and sum."""
    whole = onnx.load_from_string(io.to_bytes(made)).graph
    lines = []
    for n in whole.node:
        attributes = ", ".join(sorted(f"{a.name}={helper.get_attribute_value(a)}" for a in n.attribute))
        lines.append(f"{', '.join(n.output)} = {n.op_type}({', '.join(n.input)}) [{attributes}] {n.name}")
    for t in whole.initializer:
        values = numpy_helper.to_array(t).astype(np.float64)
        kind = TensorProto.DataType.Name(t.data_type)
        lines.append(f"{t.name}: {kind}{list(t.dims)} sum {values.sum():.4g} abs {np.abs(values).sum():.4g}")
    return "\n".join(sorted(lines)) + "\n"
