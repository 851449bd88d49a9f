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
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from gpusq_onnx.graph.wire import GRAPH_INITIALIZER, MODEL_GRAPH, TENSOR_RAW, prefix

Embedded = dict[str, NDArray[np.uint8]]

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


def offset_of(lying: NDArray[np.uint8]) -> int:
    """Where in its file one of the views that `parse` returns begins."""
    whole: Any = lying
    while isinstance(whole.base, np.ndarray):
        whole = whole.base
    return int(lying.ctypes.data - whole.ctypes.data)


def _parse(mapped: NDArray[np.uint8], threshold: int) -> tuple[ModelProto, Embedded]:
    buffer = mapped.data
    rest, graphs = bytearray(), []
    for number, at, start, end in _fields(buffer, 0, len(buffer)):
        if number == MODEL_GRAPH:
            graphs.append((start, end))
        else:
            rest += buffer[at:end]
    if len(graphs) != 1:
        raise _Unusual
    small, cuts = _without_large(buffer, *graphs[0], threshold)
    model = ModelProto.FromString(bytes(rest))
    model.graph.ParseFromString(small)
    names = [tensor.name for tensor in model.graph.initializer]
    embedded = {names[place]: mapped[start:end] for place, (start, end) in cuts.items()}
    others = {name for place, name in enumerate(names) if place not in cuts}
    if len(embedded) < len(cuts) or "" in embedded or others & embedded.keys():
        raise _Unusual
    return model, embedded


def _without_large(
    buffer: memoryview, start: int, end: int, threshold: int
) -> tuple[bytes, dict[int, tuple[int, int]]]:
    """A GraphProto without its large initializers' bytes, and where those lie, by the initializer's place."""
    small, cuts, place = bytearray(), dict[int, tuple[int, int]](), 0
    for number, at, value, after in _fields(buffer, start, end):
        if number != GRAPH_INITIALIZER:
            small += buffer[at:after]
            continue
        cut = _without_raw(buffer, value, after) if after - value >= threshold else None
        if cut is None or cut[2] - cut[1] < threshold:
            small += buffer[at:after]
        else:
            small += prefix(GRAPH_INITIALIZER, len(cut[0])) + cut[0]
            cuts[place] = cut[1:]
        place += 1
    return bytes(small), cuts


def _without_raw(buffer: memoryview, start: int, end: int) -> tuple[bytes, int, int] | None:
    """A TensorProto's fields but `raw_data`, and where that lies; None for a tensor without."""
    head, found = bytearray(), None
    for number, at, value, after in _fields(buffer, start, end):
        if number != TENSOR_RAW:
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
