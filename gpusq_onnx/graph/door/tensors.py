"""Rules of the door on what a model file says of itself: texts, versions, types, dimensions, bytes.

Each is a function from a parsed model to its violations; the list is in `door`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import FunctionProto, TensorProto, TypeProto

from gpusq_onnx.graph.door.arrival import Arrival, Level
from gpusq_onnx.graph.operators import STANDARD
from gpusq_onnx.graph.payload import SUB_BYTE, Payload, packed_bytes
from gpusq_onnx.marks import METADATA
from gpusq_onnx.parsing import parse_json

MOST_ELEMENTS = 2**48  # of one tensor: past it no file holds the bytes, and products of dimensions stay within 64 bits
HISTORY = f"{METADATA}history"

# The field that holds a type's values where they are not raw bytes, and how many entries one element takes.
_PLAIN = (
    ("float_data", 1, "FLOAT"),
    ("float_data", 2, "COMPLEX64"),
    ("double_data", 1, "DOUBLE"),
    ("double_data", 2, "COMPLEX128"),
    ("int64_data", 1, "INT64"),
    ("uint64_data", 1, "UINT32 UINT64"),
    ("string_data", 1, "STRING"),
    (
        "int32_data",
        1,
        "INT32 INT16 INT8 UINT16 UINT8 BOOL FLOAT16 BFLOAT16 FLOAT8E4M3FN FLOAT8E4M3FNUZ FLOAT8E5M2 FLOAT8E5M2FNUZ "
        "FLOAT8E8M0",
    ),
)
_FIELDS = {
    getattr(TensorProto, name): (field, entries)
    for field, entries, names in _PLAIN
    for name in names.split()
    if hasattr(TensorProto, name)
}
# int32_data of these, and the range that an entry's bits must lie in
_RANGES = {
    "INT16": (-(2**15), 2**15 - 1),
    "INT8": (-(2**7), 2**7 - 1),
    "UINT16": (0, 2**16 - 1),
    "UINT8": (0, 2**8 - 1),
    "BOOL": (0, 1),
    "FLOAT16": (0, 2**16 - 1),
    "BFLOAT16": (0, 2**16 - 1),
}


def texts(arrival: Arrival) -> Iterator[str]:
    """Every name and documentation is UTF-8: protobuf hands out bytes for what is not."""
    yield from _texts(arrival.proto, "the model")


def _texts(message: Message, inside: str) -> Iterator[str]:
    here = getattr(message, "name", "")
    inside = f"{type(message).__name__} {here!r}" if isinstance(here, str) and here else inside
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_STRING:
            if any(isinstance(item, bytes) for item in ([value] if isinstance(value, (str, bytes)) else value)):
                yield f"{field.name} of {inside} is not UTF-8"
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            for item in (value,) if isinstance(value, Message) else value:
                yield from _texts(item, inside)


def versions(arrival: Arrival) -> Iterator[str]:
    """The IR version is one that onnx knows, and a domain is imported once, at a version above 0."""
    found = arrival.proto.ir_version
    if not 1 <= found <= onnx.IR_VERSION:
        yield f"IR version {found} is not within 1 to {onnx.IR_VERSION}, which onnx {onnx.__version__} knows"
    owners = [("the model", arrival.proto.opset_import)]
    owners += [(f"function {f.name!r}", f.opset_import) for f in arrival.proto.functions]
    for owner, imports in owners:
        known: dict[str, int] = {}
        for entry in imports:
            domain = "" if entry.domain in STANDARD else entry.domain
            if entry.version < 1 or known.setdefault(domain, entry.version) != entry.version:
                yield f"{owner} imports the operator domain {domain!r} at version {entry.version}, or at several"


def history(arrival: Arrival) -> Iterator[str]:
    """What earlier runs of this tool are said to have noted can be continued: a JSON list of objects."""
    for entry in arrival.proto.metadata_props:
        if entry.key != HISTORY or not entry.value:
            continue
        try:
            found = parse_json(entry.value)
        except ValueError:
            found = None
        if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
            yield f"the metadata {HISTORY!r} is no JSON list of objects: remove it"


def types(arrival: Arrival) -> Iterator[str]:
    """Every stored tensor has an element type that onnx knows."""
    for what, tensor in arrival.tensors:
        if not _is_type(tensor.data_type):
            yield f"{what} has the unknown element type {tensor.data_type}"


def sizes(arrival: Arrival) -> Iterator[str]:
    """Dimensions are not negative, and their product is a number of elements that a file can hold."""
    for what, tensor in arrival.tensors:
        if any(dim < 0 for dim in tensor.dims) or math.prod(tensor.dims) > MOST_ELEMENTS:
            shown = ", ".join(map(str, tensor.dims[:8]))
            yield f"{what} has the impossible shape [{shown}]"


def lengths(arrival: Arrival) -> Iterator[str]:
    """A tensor that lies in the model file holds as many bytes or values as its shape and type say, in one place."""
    cut = dict(arrival.cut)
    for what, tensor in arrival.tensors:
        if tensor.data_location == TensorProto.EXTERNAL:
            continue
        stored = cut.pop(tensor.name, None) if what.startswith("initializer") and not _held(tensor) else None
        yield from _length(what, tensor, stored)


def _length(what: str, tensor: TensorProto, cut: int | None) -> Iterator[str]:
    elements = math.prod(tensor.dims)
    held = _held(tensor)
    if tensor.HasField("segment"):
        yield f"{what} is stored in segments"
    elif tensor.data_type == TensorProto.STRING:
        if cut is not None or set(held) - {"string_data"} or len(tensor.string_data) != elements:
            yield f"{what} holds {len(tensor.string_data)} strings, its shape says {elements}"
    elif cut is not None or "raw_data" in held:
        found, wanted = cut if cut is not None else len(tensor.raw_data), packed_bytes(tensor.data_type, tensor.dims)
        if found != wanted or set(held) - {"raw_data"}:
            yield f"{what} does not hold what its shape {_shape(tensor)} says: {found} bytes, expected {wanted} bytes"
    else:
        field, wanted = _plain(tensor, elements)
        found = len(getattr(tensor, field))
        if found != wanted or set(held) - {field}:
            yield f"{what} does not hold what its shape {_shape(tensor)} says: {found} of {wanted} values in {field}"
        elif low_high := _RANGES.get(TensorProto.DataType.Name(tensor.data_type)):
            outside = [value for value in tensor.int32_data if not low_high[0] <= value <= low_high[1]]
            if outside:
                yield f"{what} holds {outside[0]}, which its element type has not"


def _plain(tensor: TensorProto, elements: int) -> tuple[str, int]:
    """The field of typed values that `tensor` must use, and how many entries it must have."""
    if tensor.data_type in SUB_BYTE:
        return "int32_data", -(-elements * SUB_BYTE[tensor.data_type] // 8)
    field, entries = _FIELDS.get(tensor.data_type, ("raw_data", 1))
    return field, elements * entries


_STORES = ("raw_data", "float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")


def _held(tensor: TensorProto) -> list[str]:
    """The fields that hold values of a tensor; an empty `raw_data` is one."""
    return [name for name in _STORES if (tensor.HasField(name) if name == "raw_data" else len(getattr(tensor, name)))]


def external(arrival: Arrival) -> Iterator[str]:
    """External data lies where it may and is as long as it must be; no attribute but a Constant's refers to any."""
    constants = {id(a.t) for _, n in arrival.nodes() if n.op_type == "Constant" for a in n.attribute}
    for what, tensor in arrival.tensors:
        if tensor.data_location != TensorProto.EXTERNAL:
            if tensor.data_location != TensorProto.DEFAULT:
                yield f"{what} lies in the unknown place {tensor.data_location}"
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        if "\0" in location or any(len(part.encode()) > 255 for part in location.split("/")):
            yield f"{what} is external data without a usable location: {location[:80]!r}"
        elif tensor.data_type == TensorProto.STRING:
            yield f"{what} is external data of strings"
        elif what.startswith(("attribute", "sparse", "indices")) and id(tensor) not in constants:
            yield f"{what} is external data, which only initializers and Constant nodes have"
        else:
            Payload(tensor, arrival.folder).external_bytes()


def values(arrival: Arrival) -> Iterator[str]:
    """Inputs, outputs and inner values have names, known types and possible dimensions; inputs and outputs a type."""
    for level in arrival.graphs:
        for kind in ("input", "output", "value_info"):
            for value in getattr(level.body, kind):
                what = f"{kind} {value.name!r} of {level.where}"
                if not value.name:
                    yield f"an {kind} of {level.where} has no name"
                elif kind == "input" and level.where == "the graph" and not value.type.tensor_type.elem_type:
                    yield f"{what} is no tensor of a known type"
                else:
                    yield from _value(what, value.type)
    for level in arrival.levels:
        yield from _values_of_function(level)


def _values_of_function(level: Level) -> Iterator[str]:
    if isinstance(level.body, FunctionProto) and not all((*level.body.input, *level.body.output)):
        yield f"an input or output of {level.where} has no name"


def _value(what: str, kind: TypeProto) -> Iterator[str]:
    tensor = kind.tensor_type if kind.HasField("tensor_type") else kind.sparse_tensor_type
    if tensor.elem_type and not _is_type(tensor.elem_type):
        yield f"{what} has the unknown element type {tensor.elem_type}"
    if any(dim.HasField("dim_value") and not 0 <= dim.dim_value <= MOST_ELEMENTS for dim in tensor.shape.dim):
        yield f"{what} has an impossible dimension"


def _is_type(number: int) -> bool:
    try:
        return number != TensorProto.UNDEFINED and onnx.helper.tensor_dtype_to_np_dtype(number) is not None
    except KeyError:
        return False


def _shape(tensor: Any) -> str:
    return f"[{', '.join(map(str, tensor.dims))}]"
