"""Parse an ONNX file without the bytes of its large initializers, which stay in the file until somebody looks at them.

A model file is nearly all weights, and protobuf copies each of them twice on its way in. This walks the file's fields,
skips over the `raw_data` of large initializers, parses the rest (a few hundred kilobytes), and says where the skipped
bytes lie, in a read-only memory map of the file.

    ModelProto.graph (7) · GraphProto.initializer (5) · TensorProto.raw_data (9)

Source: protobuf's wire format (tag = field number · 8 + kind; varints; kind 2 is length-delimited). Limits: anything
unusual (two graphs, a name twice, raw_data twice, groups, a truncated field) is left to protobuf's own parser.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, TensorProto

Embedded = dict[str, NDArray[np.uint8]]

_MODEL_GRAPH = ModelProto.GRAPH_FIELD_NUMBER
_GRAPH_INITIALIZER = GraphProto.INITIALIZER_FIELD_NUMBER
_TENSOR_RAW = TensorProto.RAW_DATA_FIELD_NUMBER
_FIXED = {1: 8, 5: 4}  # bytes of the kinds of fixed size


class _Unusual(Exception):
    """The file is not laid out as every exporter does; protobuf must judge it."""


def parse(path: Path, threshold: int) -> tuple[ModelProto, Embedded]:
    """The model in `path`, and the bytes of each initializer of `threshold` bytes or more that it was parsed without.

    Returns:
        The ModelProto, in which those initializers have neither `raw_data` nor any other values; and by their names
        uint8[n] views of the mapped file.

    Raises:
        google.protobuf.message.DecodeError: not a ModelProto.
    """
    try:
        mapped = np.memmap(path, np.uint8, "r")
        return _parse(mapped, threshold)
    except (_Unusual, ValueError):  # numpy cannot map an empty file
        return onnx.load_model(str(path), "protobuf", load_external_data=False), {}


def _parse(mapped: NDArray[np.uint8], threshold: int) -> tuple[ModelProto, Embedded]:
    buffer = mapped.data
    graphs = [(start, end) for number, _, start, end in _fields(buffer, 0, len(buffer)) if number == _MODEL_GRAPH]
    if len(graphs) != 1:
        raise _Unusual
    begin, finish = graphs[0]
    small = bytearray()  # the GraphProto without its large initializers
    proto_parts: list[TensorProto] = []
    embedded: Embedded = {}
    order: list[int] = []  # for each initializer, its place among those cut out, or -1
    for number, at, start, end in _fields(buffer, begin, finish):
        if number != _GRAPH_INITIALIZER:
            small += buffer[at:end]
            continue
        cut = _without_raw(buffer, start, end) if end - start >= threshold else None
        if cut is None or cut[2] - cut[1] < threshold:
            small += buffer[at:end]
            order.append(-1)
            continue
        head, raw_start, raw_end = cut
        tensor = TensorProto.FromString(head)
        if tensor.name in embedded or not tensor.name:
            raise _Unusual
        embedded[tensor.name] = mapped[raw_start:raw_end]
        order.append(len(proto_parts))
        proto_parts.append(tensor)
    model = ModelProto()
    for number, at, _, end in _fields(buffer, 0, len(buffer)):
        if number != _MODEL_GRAPH:
            model.MergeFromString(bytes(buffer[at:end]))
    model.graph.ParseFromString(bytes(small))
    kept = list(model.graph.initializer)
    if {tensor.name for tensor in kept} & embedded.keys():
        raise _Unusual
    rest = iter(kept)
    merged = [next(rest) if place < 0 else proto_parts[place] for place in order]
    del model.graph.initializer[:]
    model.graph.initializer.extend(merged)
    return model, embedded


def _without_raw(buffer: memoryview, start: int, end: int) -> tuple[bytes, int, int] | None:
    """A TensorProto's fields but `raw_data`, and where that lies; None for a tensor without."""
    head, found = bytearray(), None
    for number, at, value, after in _fields(buffer, start, end):
        if number != _TENSOR_RAW:
            head += buffer[at:after]
        elif found is not None:
            raise _Unusual
        else:
            found = value, after
    return None if found is None else (bytes(head), *found)


def _fields(buffer: memoryview, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(number, start of the tag, start of the value, end) of each field in buffer[at:end]."""
    while at < end:
        tag, value = _varint(buffer, at, end)
        kind = tag & 7
        if kind == 0:
            _, after = _varint(buffer, value, end)
        elif kind == 2:
            length, value = _varint(buffer, value, end)
            after = value + length
        elif kind in _FIXED:
            after = value + _FIXED[kind]
        else:
            raise _Unusual
        if after > end:
            raise _Unusual
        yield tag >> 3, at, value, after
        at = after


def _varint(buffer: memoryview, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 64:
        byte = buffer[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise _Unusual
