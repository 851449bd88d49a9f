"""The ONNX model as this tool sees it: an onnx-graphsurgeon graph, and all that graphsurgeon would lose.

`Model.graph` is the one representation that passes read and edit. graphsurgeon drops model- and node-level metadata,
documentation and attribute kinds that it does not know, and rebuilds the inputs and outputs; `Model` keeps the
originals and `export` puts them back, so that what a pass did not touch leaves as it came.

Limits: `Constant` nodes of the main graph become initializers on import (same tensor name, same value); initializers
that no node reads are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues
from onnx_graphsurgeon.logger import G_LOGGER

from gpusq_onnx.errors import UnsupportedModelError
from gpusq_onnx.graph.payload import Header, Payload

Node, Tensor = gs.Node, gs.Tensor  # for those above this package, which name graphsurgeon's types and make none

INLINE_BYTES = 1024  # smaller constants travel inside the graph: shapes, axes and scalars are needed to reason about it

Large = tuple[TensorProto, int, Callable[[], NDArray[np.uint8]]]


@dataclass(frozen=True)
class TensorSpec:
    """A graph input or output: its name, numpy type and shape (a string or None is a dynamic dimension)."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]


@dataclass
class Model:
    """A model in memory.

    Attributes:
        graph: the graph that passes edit.
        header: everything of the ModelProto but its graph (opsets, metadata, functions, producer).
        frame: the GraphProto's inputs, outputs, name, documentation and metadata, as they came.
        external: whether the weights lay in external data files.
    """

    graph: gs.Graph
    header: ModelProto
    frame: GraphProto
    external: bool = False
    facts: list[Any] = field(default_factory=list)

    @property
    def opset(self) -> int:
        """The version of the default operator set."""
        return int(self.graph.opset)

    @property
    def metadata(self) -> dict[str, str]:
        """The model-level metadata_props (a copy; see `set_metadata`)."""
        return {entry.key: entry.value for entry in self.header.metadata_props}

    def set_metadata(self, values: dict[str, str]) -> None:
        """Add or replace model-level metadata, keys in sorted order after those that were there."""
        kept = {**self.metadata, **dict(sorted(values.items()))}
        del self.header.metadata_props[:]
        for key, value in kept.items():
            self.header.metadata_props.add(key=key, value=value)

    def inputs(self) -> list[TensorSpec]:
        """The inputs that a caller must feed (initializers listed as inputs are not among them)."""
        fed = {tensor.name for tensor in self.graph.inputs}
        return [_spec(value) for value in self.frame.input if value.name in fed]

    def outputs(self) -> list[TensorSpec]:
        """The outputs, in order."""
        return [_spec(value) for value in self.frame.output]

    def constants(self) -> Iterator[gs.Constant]:
        """Every initializer that a node of the main graph or a subgraph reads."""
        for tensor in self.graph.tensors().values():
            if isinstance(tensor, gs.Constant):
                yield tensor

    def export(self) -> tuple[GraphProto, list[Large]]:
        """The graph without the bytes of its large initializers, and these beside it."""
        constants = [c for c in self.constants() if _nbytes(c) >= INLINE_BYTES]
        saved = [(c, c._values) for c in constants]
        try:
            headers = [_header(c) for c in constants]
            for constant, header in zip(constants, headers, strict=True):
                constant._values = header
            with G_LOGGER.suppress():
                graph = gs.export_onnx(self.graph, do_type_check=False).graph
        finally:
            for constant, values in saved:
                constant._values = values
        names = {c.name for c in constants}
        small = [t for t in graph.initializer if t.name not in names]
        del graph.initializer[:]
        graph.initializer.extend(small)
        self._restore(graph)
        large = [
            (header.tensor, _nbytes(constant), _reader(values))
            for header, (constant, values) in zip(headers, saved, strict=True)
        ]
        return graph, large

    def skeleton(self) -> ModelProto:
        """A ModelProto whose large initializers are graph inputs instead: small, valid, for shape inference."""
        graph, large = self.export()
        for tensor, _, _ in large:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
        model = ModelProto()
        model.CopyFrom(self.header)
        model.graph.CopyFrom(graph)
        return model

    def _restore(self, graph: GraphProto) -> None:
        for node, proto in zip(self.graph.nodes, graph.node, strict=True):
            origin: NodeProto | None = getattr(node, "origin", None)
            if origin is None:
                continue
            proto.doc_string, proto.overload = origin.doc_string, origin.overload
            proto.metadata_props.extend(origin.metadata_props)
            known = {attribute.name for attribute in proto.attribute}
            kinds = (onnx.AttributeProto.SPARSE_TENSOR, onnx.AttributeProto.TYPE_PROTO, onnx.AttributeProto.GRAPHS)
            proto.attribute.extend(a for a in origin.attribute if a.name not in known and a.type in kinds)
        for name in ("input", "output", "metadata_props", "quantization_annotation"):
            graph.ClearField(name)
            getattr(graph, name).extend(getattr(self.frame, name))
        graph.name, graph.doc_string = self.frame.name, self.frame.doc_string


def from_proto(model: ModelProto, folder: Path | None) -> Model:
    """Import a parsed model at its final opset; `folder` is where its external data locations start from.

    Raises:
        UnsupportedModelError: a node reads a tensor that nothing produces, or external data cannot be used.
    """
    header = ModelProto()
    for descriptor, value in model.ListFields():
        if descriptor.name == "graph":
            continue
        if isinstance(value, (int, str)):
            setattr(header, descriptor.name, value)
        else:
            getattr(header, descriptor.name).extend(value)
    frame = GraphProto(name=model.graph.name, doc_string=model.graph.doc_string)
    for name in ("input", "output", "metadata_props", "quantization_annotation"):
        getattr(frame, name).extend(getattr(model.graph, name))
    with G_LOGGER.suppress():
        graph = gs.import_onnx(model)
    for node, origin in zip(graph.nodes, model.graph.node, strict=True):
        node.origin = NodeProto(doc_string=origin.doc_string, overload=origin.overload)
        node.origin.metadata_props.extend(origin.metadata_props)
        node.origin.attribute.extend(a for a in origin.attribute if a.type not in _COMMON)
    external = _wrap_constants(graph, folder)
    _lift_constant_nodes(graph, folder)
    return Model(graph, header, frame, external)


_COMMON = frozenset(
    getattr(onnx.AttributeProto, kind) for kind in "FLOAT INT STRING TENSOR GRAPH FLOATS INTS STRINGS".split()
)


def _wrap_constants(graph: gs.Graph, folder: Path | None) -> bool:
    external = False
    for tensor in graph.tensors().values():
        if isinstance(tensor, gs.Constant) and type(tensor._values) is LazyValues:
            tensor._values = Payload(tensor._values.tensor, folder)
            tensor.data_location = None
            if tensor._values.external:
                tensor._values.external_bytes()
                external = True
    return external


_SCALARS = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}


def _lift_constant_nodes(graph: gs.Graph, folder: Path | None) -> None:
    kept = []
    outputs = {tensor.name for tensor in graph.outputs}
    for node in graph.nodes:
        key, value = next(iter(node.attrs.items()), ("", None)) if node.op == "Constant" else ("", None)
        if key == "value" and isinstance(value, gs.Constant):
            values: Any = Payload(value._values.tensor, folder) if type(value._values) is LazyValues else value._values
        elif key in _SCALARS:
            values = np.asarray(value, _SCALARS[key])
        else:
            kept.append(node)
            continue
        tensor = node.outputs[0]
        if tensor.name in outputs:
            kept.append(node)
            continue
        node.outputs.clear()
        tensor.to_constant(values)
    graph.nodes[:] = kept


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    shape = tuple(
        d.dim_value if d.HasField("dim_value") else (d.dim_param if d.HasField("dim_param") else None)
        for d in kind.shape.dim
    )
    if not kind.elem_type:
        return TensorSpec(value.name, np.dtype(object), shape)
    return TensorSpec(value.name, np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)), shape)


def values_of(constant: gs.Constant) -> NDArray[Any]:
    """The values of an initializer; a lazily loaded one is decoded for the caller and not kept (treat as read-only)."""
    return decoded(constant._values)


def decoded(values: Any) -> NDArray[Any]:
    """An initializer's values as an array, whether they were loaded already or not."""
    return values.load() if isinstance(values, LazyValues) else values  # type: ignore[no-any-return]


def data_type_of(constant: gs.Constant) -> int:
    """The ONNX element type of an initializer."""
    values = constant._values
    if isinstance(values, (Payload, Header)):
        return int(values.tensor.data_type)
    return int(onnx.helper.np_dtype_to_tensor_dtype(values.dtype))


def _nbytes(constant: gs.Constant) -> int:
    values = constant._values
    if isinstance(values, SparseValues):
        return 0
    if isinstance(values, Payload):
        return values._packed_bytes()
    bits = 4 if data_type_of(constant) in (TensorProto.INT4, TensorProto.UINT4) else 8 * values.dtype.itemsize
    return int(-(-int(np.prod(values.shape, dtype=np.int64)) * bits // 8))


def _header(constant: gs.Constant) -> Header:
    values = constant._values
    origin = values.tensor if isinstance(values, Payload) else None
    return Header(constant.name, data_type_of(constant), tuple(constant.shape), origin)


def _reader(values: Any) -> Callable[[], NDArray[np.uint8]]:
    def read() -> NDArray[np.uint8]:
        if isinstance(values, Payload):
            if values.external:
                return values.external_bytes()
            if values.tensor.HasField("raw_data"):
                return np.frombuffer(values.tensor.raw_data, np.uint8)
            array = values.load()
        else:
            array = values
        if array.dtype.itemsize == 1 and array.dtype.name in ("int4", "uint4"):
            packed = onnx.numpy_helper.from_array(array)
            return np.frombuffer(packed.raw_data, np.uint8)
        return np.ascontiguousarray(array).reshape(-1).view(np.uint8)

    return read


def check_names(model: Model) -> Iterable[str]:
    """Names of tensors that a node of the main graph reads and nothing provides."""
    given = {t.name for t in model.graph.inputs}
    for node in model.graph.nodes:
        for tensor in node.inputs:
            if isinstance(tensor, gs.Variable) and tensor.name and not tensor.inputs and tensor.name not in given:
                yield tensor.name


def require_connected(model: Model) -> None:
    """Refuse a graph that reads tensors which nothing provides."""
    missing = sorted(set(check_names(model)))
    if missing:
        raise UnsupportedModelError(
            f"the graph reads {len(missing)} tensor(s) that nothing produces",
            found=", ".join(missing[:5]),
            hint="export the model again; onnx.checker.check_model names the node",
        )
