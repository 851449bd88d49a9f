"""Write a ModelProto to a file without ever holding it twice.

`SerializeToString` builds the whole file in memory beside the model. Here the graph's small parts are serialised by
protobuf, and each large initializer is written as what it is on the wire: a length-delimited GraphProto.initializer
whose last field is raw_data. Any protobuf parser reads the result as an ordinary ONNX file.

Source: protobuf encoding (tag = field << 3 | 2, varint length), field numbers of onnx.proto. Limit: protobuf's 2 GiB a
file; larger models go to external data (`gpusq_onnx.graph.io.save`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, TensorProto

if TYPE_CHECKING:
    from typing_extensions import Buffer


class BinaryWriter(Protocol):
    """Anything with a binary `write`."""

    def write(self, data: Buffer, /) -> object:
        """Write all of `data`."""
        ...


MODEL_GRAPH = ModelProto.GRAPH_FIELD_NUMBER
GRAPH_INITIALIZER = GraphProto.INITIALIZER_FIELD_NUMBER
TENSOR_RAW = TensorProto.RAW_DATA_FIELD_NUMBER


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def prefix(field: int, length: int) -> bytes:
    """What comes before a length-delimited field of so many bytes."""
    return _varint(field << 3 | 2) + _varint(length)


def write_model(
    file: BinaryWriter,
    header: ModelProto,
    graph: GraphProto,
    large: Iterable[tuple[TensorProto, int, Callable[[], NDArray[np.uint8]]]],
) -> None:
    """Write `header` (without a graph), `graph` and the large initializers as one ONNX file.

    Args:
        file: open for writing, binary.
        header: the model without its graph.
        graph: the graph without the large initializers.
        large: for each, its TensorProto without bytes, the number of bytes, and a function that yields them.
    """
    body: bytes = graph.SerializeToString(deterministic=True)
    parts = []
    for tensor, length, values in large:
        head: bytes = tensor.SerializeToString(deterministic=True) + prefix(TENSOR_RAW, length)
        parts.append((prefix(GRAPH_INITIALIZER, len(head) + length) + head, length, values))
    total = len(body) + sum(len(head) + length for head, length, _ in parts)
    file.write(header.SerializeToString(deterministic=True))
    file.write(prefix(MODEL_GRAPH, total))
    file.write(body)
    for head, length, values in parts:
        file.write(head)
        _write_exactly(file, values(), length)


def _write_exactly(file: BinaryWriter, values: NDArray[Any], length: int) -> None:
    assert values.nbytes == length, (values.nbytes, length)
    file.write(values.data)
