"""The ONNX model as this tool sees it: an onnx-graphsurgeon graph, and all that graphsurgeon would lose.

`Model.graph` is the one representation that passes read and edit. graphsurgeon drops model- and node-level metadata,
documentation and attribute kinds that it does not know, and rebuilds the inputs and outputs; `Model` keeps the
originals and `export` puts them back, so that what a pass did not touch leaves as it came.

Limits: `Constant` nodes of the main graph become initializers on import (same tensor name, same value); initializers
that no node reads are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, TensorProto
from onnx_graphsurgeon.importers.onnx_importer import OnnxImporter
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues
from onnx_graphsurgeon.logger import G_LOGGER

from gpusq_onnx.errors import UnsupportedModelError
from gpusq_onnx.graph.origin import copied, frame_of, inline_subgraph_data, remember, restore, subgraphs
from gpusq_onnx.graph.payload import SUB_BYTE, Header, Payload, packed_bytes
from gpusq_onnx.graph.scan import Embedded

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
        external: whether the weights lie, or go out, in an external data file.
        data_files: the external data files that it came with.
        inner: names of the initializers that belong to subgraphs.
        observed: shapes of tensors for one image, seen in a run where inference does not know them.
        typed: types of what operators of other domains make (`graph.foreign_types`).
        came_with: the opset of the file that it was read from; None of a model from memory.
        rewritten: whether reading made other nodes or values of some, which ought to compute the same.
    """

    graph: gs.Graph
    header: ModelProto
    frame: GraphProto
    external: bool = False
    data_files: frozenset[Path] = frozenset()
    inner: frozenset[str] = frozenset()
    observed: dict[str, tuple[int, ...]] = field(default_factory=dict)
    typed: dict[str, np.dtype[Any]] = field(default_factory=dict)
    came_with: int | None = None
    rewritten: bool = False

    @property
    def opset(self) -> int:
        """The version of the default operator set."""
        return int(self.graph.opset)

    @property
    def metadata(self) -> dict[str, str]:
        """The model-level metadata_props (a copy; see `set_metadata`)."""
        return {entry.key: entry.value for entry in self.header.metadata_props}

    def set_metadata(self, values: Mapping[str, str | None]) -> None:
        """Add, replace or (None) remove model-level metadata, keys in sorted order after those that were there."""
        merged = {**self.metadata, **dict(sorted(values.items()))}
        kept = {key: value for key, value in merged.items() if value is not None}
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
        """Every initializer of the main graph that a node there or in a subgraph reads."""
        return (tensor for tensor in _constants(self.graph) if tensor.name not in self.inner)

    def inner_constants(self) -> Iterator[gs.Constant]:
        """Every initializer of a subgraph that a node reads."""
        return (tensor for tensor in _constants(self.graph) if tensor.name in self.inner)

    def clone(self) -> Model:
        """The model as it is now, for a later look: its graph is independent, values that nobody replaces are shared.

        Costs no weights: lazily loaded values stay where they are, and passes replace arrays instead of editing them.
        """
        header, frame = ModelProto(), GraphProto()
        header.CopyFrom(self.header)
        frame.CopyFrom(self.frame)
        return replace(self, graph=copied(self.graph), header=header, frame=frame)

    def export(self) -> tuple[GraphProto, list[Large]]:
        """The graph without the bytes of its large initializers, and these beside it."""
        saved = [(c, c._values) for c in self.constants() if not isinstance(c._values, SparseValues)]
        headers = [_header(c) for c, _ in saved]
        try:
            for (constant, _), header in zip(saved, headers, strict=True):
                constant._values = header
            with G_LOGGER.suppress():
                graph = gs.export_onnx(self.graph, do_type_check=False).graph
        finally:
            for constant, values in saved:
                constant._values = values
        del graph.initializer[:]
        large: list[Large] = []
        for (constant, values), header in zip(saved, headers, strict=True):
            if _nbytes(constant) >= INLINE_BYTES:
                large.append((header.tensor, _nbytes(constant), _reader(values)))
            else:
                graph.initializer.append(_inline(constant.name, values))
        restore(self.graph, graph, self.frame)
        self._keep_inputs(graph)
        return graph, large

    def _keep_inputs(self, graph: GraphProto) -> None:
        """Of inputs that only name an initializer (the custom before IR 4), keep those that still do."""
        fed = {tensor.name for tensor in self.graph.inputs}
        types = {c.name: (data_type_of(c), tuple(c.shape)) for c in self.constants()}
        for value in list(graph.input):
            kind = value.type.tensor_type
            declared = (kind.elem_type, tuple(dim.dim_value for dim in kind.shape.dim))
            if value.name not in fed and types.get(value.name) != declared:
                graph.input.remove(value)


def from_proto(model: ModelProto, folder: Path | None, embedded: Embedded | None = None) -> Model:
    """Import a parsed model at its final opset.

    Args:
        model: as parsed.
        folder: where its external data locations start from.
        embedded: the bytes of initializers that it was parsed without, by name (see `graph.scan`).

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
    files = inline_subgraph_data(model.graph, folder)
    with G_LOGGER.suppress():
        graph = _imported(model)
    remember(graph, model.graph)
    lift_constant_nodes(graph)
    files |= _wrap_constants(graph, folder, embedded or {})
    inner = frozenset(t.name for inner in subgraphs(model.graph) for t in inner.initializer)
    return Model(graph, header, frame_of(model.graph), bool(files), frozenset(files), inner)


def _imported(model: ModelProto) -> gs.Graph:
    """Without the local functions, which stay in the header: graphsurgeon need not understand them."""
    opset = OnnxImporter.get_opset(model)
    try:
        return OnnxImporter.import_graph(
            model.graph, opset=opset, import_domains=model.opset_import, ir_version=model.ir_version
        )
    except UnicodeDecodeError as error:
        raise UnsupportedModelError(
            "a string attribute holds bytes that are not UTF-8",
            found=str(error),
            hint="engines and other binaries embedded in nodes cannot be rewritten; use the original ONNX model",
        ) from None


def _wrap_constants(graph: gs.Graph, folder: Path | None, embedded: Embedded) -> set[Path]:
    """Replace graphsurgeon's lazy values by ours; returns the external files that they lie in, all checked."""
    files = set()
    for tensor in _constants(graph):
        if type(tensor._values) is LazyValues:
            proto = tensor._values.tensor
            payload = Payload(proto, folder, None if proto.HasField("raw_data") else embedded.get(tensor.name))
            tensor._values = payload
            tensor.data_location = None
            if payload.external:
                payload.external_bytes()
                files.add(payload.file)
                if payload.packed < INLINE_BYTES:
                    tensor._values = Payload(payload.inlined())
    return files


def _constants(graph: gs.Graph) -> Iterator[gs.Constant]:
    """The constants that the graph and its subgraphs read, each once."""
    seen: set[int] = set()
    for level in (graph, *graph.subgraphs(recursive=True)):
        for tensor in level.tensors().values():
            if isinstance(tensor, gs.Constant) and id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor


_SCALARS = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}


def lift_constant_nodes(graph: gs.Graph) -> None:
    """Make initializers of a graph's Constant nodes, but for those that make an output."""
    kept = []
    outputs = {tensor.name for tensor in graph.outputs}
    for node in graph.nodes:
        key, value = next(iter(node.attrs.items()), ("", None)) if node.op == "Constant" else ("", None)
        if key == "value" and isinstance(value, gs.Constant):
            values: Any = value._values
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


def peeked(constant: gs.Constant) -> NDArray[Any]:
    """The values of an initializer, read-only, where they lie (`Payload.peek`)."""
    values = constant._values
    return values.peek() if isinstance(values, Payload) else decoded(values)


def sum_of(constant: gs.Constant) -> np.float32:
    """The sum of an initializer of numbers (`Payload.sum`)."""
    values = constant._values
    if isinstance(values, Payload):
        return values.sum()
    with np.errstate(over="ignore"):
        return np.float32(np.sum(decoded(values), dtype=np.float32))


def is_loaded(values: Any) -> bool:
    """Whether an initializer's values are an array in memory."""
    return not isinstance(values, LazyValues)


def data_type_of(constant: gs.Constant) -> int:
    """The ONNX element type of an initializer."""
    values = constant._values
    if isinstance(values, (Payload, Header)):
        return int(values.tensor.data_type)
    return int(onnx.helper.np_dtype_to_tensor_dtype(values.dtype))


def type_name(constant: gs.Constant) -> str:
    """The ONNX name of an initializer's element type, in lower case: "float", "int8", "float8e4m3fn"."""
    return str(TensorProto.DataType.Name(data_type_of(constant))).lower()


def _nbytes(constant: gs.Constant) -> int:
    kind = data_type_of(constant)
    return 0 if kind == TensorProto.STRING else packed_bytes(kind, constant.shape)  # strings have no raw bytes


def _inline(name: str, values: Any) -> TensorProto:
    if not isinstance(values, Payload):
        return onnx.numpy_helper.from_array(decoded(values), name)
    values.tensor.name = name
    return values.tensor


def _header(constant: gs.Constant) -> Header:
    values = constant._values
    origin = values.tensor if isinstance(values, Payload) else None
    return Header(constant.name, data_type_of(constant), tuple(constant.shape), origin)


def _reader(values: Any) -> Callable[[], NDArray[np.uint8]]:
    def read() -> NDArray[np.uint8]:
        if isinstance(values, Payload):
            mapped = values.mapped
            if mapped is not None:
                return mapped
            if values.tensor.HasField("raw_data"):
                return np.frombuffer(values.tensor.raw_data, np.uint8)
            array = values.load()
        else:
            array = values
        if onnx.helper.np_dtype_to_tensor_dtype(array.dtype) in SUB_BYTE:
            return np.frombuffer(onnx.numpy_helper.from_array(array).raw_data, np.uint8)
        return np.ascontiguousarray(array).reshape(-1).view(np.uint8)

    return read


def unproduced(model: Model) -> Iterable[str]:
    """Names of tensors that a node of the main graph reads and nothing provides."""
    given = {t.name for t in model.graph.inputs}
    for node in model.graph.nodes:
        for tensor in node.inputs:
            if isinstance(tensor, gs.Variable) and tensor.name and not tensor.inputs and tensor.name not in given:
                yield tensor.name
