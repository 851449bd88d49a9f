"""Where a model's initializers lie in its files, and which of them are floats that a QuantizeLinear reads.

Only raw bytes count (in the model file or in external data), in no other folder than the model's; of initializers whose
bytes overlap, the first. Between a float weight and its QuantizeLinear may be what lays it out: Transpose, Squeeze,
Identity.

Source: ONNX TensorProto; QuantizeLinear-10 to -25. Limits: the main graph; scales that are initializers, or that one
DequantizeLinear makes of two (NVFP4); no Split between.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto

from gpusq_onnx.errors import UnsupportedModelError
from gpusq_onnx.graph.io import read_proto
from gpusq_onnx.graph.operators import QDQ
from gpusq_onnx.graph.pack.scaling import ELEMENTS, GRIDS, INTEGERS, Scaling
from gpusq_onnx.graph.payload import Payload
from gpusq_onnx.quant.formats import natural


@dataclass(frozen=True)
class Stored:
    """An initializer's raw bytes in a file."""

    tensor: TensorProto
    file: Path
    start: int
    data: NDArray[np.uint8]

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.tensor.name)

    @property
    def dims(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.tensor.dims)

    @property
    def element(self) -> str:
        """The numpy or ml_dtypes name of its type."""
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(self.tensor.data_type)).name

    def values(self) -> NDArray[Any]:
        """Its values, of a type of whole bytes; a copy."""
        return np.frombuffer(self.data.tobytes(), np.dtype(self.element)).reshape(self.dims)


@dataclass(frozen=True)
class Initializers:
    """What a model's files hold.

    Attributes:
        stored: the initializers whose bytes lie raw in a file, by place.
        scalings: how floats among them follow from codes, by name.
        scales: the names of what Q/DQ nodes read beside their data: scales and zero points.
    """

    stored: list[Stored]
    scalings: dict[str, Scaling]
    scales: frozenset[str]


def read_initializers(path: Path) -> Initializers:
    """The initializers of a model's main graph.

    Raises:
        UsageError: there is no such file.
        UnsupportedModelError: not ONNX, or external data that is missing or in another folder.
    """
    proto, embedded = read_proto(path, least=1)
    found = [
        stored
        for tensor in proto.graph.initializer
        if tensor.data_type != TensorProto.STRING
        and (stored := _located(Payload(tensor, path.parent, embedded.get(tensor.name)), path)) is not None
    ]
    found.sort(key=lambda one: (one.file != path, str(one.file), one.start, -len(one.data)))
    first, alias = list[Stored](), dict[str, str]()
    for one in found:
        last = first[-1] if first else None
        if last is None or last.file != one.file or one.start >= last.start + len(last.data):
            first.append(one)
        elif (one.start, len(one.data), one.tensor.data_type) == (last.start, len(last.data), last.tensor.data_type):
            alias[one.name] = last.name
    known = {one.name: one for one in first}
    known |= {name: known[other] for name, other in alias.items()}
    pairs = [node for node in proto.graph.node if node.op_type in QDQ]
    scales = {name for node in pairs for name in node.input[1:]}
    scales |= {node.input[0] for node in pairs if node.output[0] in scales}  # FP8 scales of blocks
    scalings = dict(_scalings(proto, known))
    scales |= {name for scaling in scalings.values() for name in (scaling.scale, scaling.outer)}
    return Initializers(first, scalings, frozenset(scales))


def _located(payload: Payload, path: Path) -> Stored | None:
    mapped = payload.mapped
    if mapped is None or not len(mapped):
        return None
    if not payload.external:
        return Stored(payload.tensor, path, int(mapped.ctypes.data - mapped.base.ctypes.data), mapped)  # type: ignore[union-attr]
    file = payload.file
    if file.parent != path.resolve().parent:
        raise UnsupportedModelError("external data in a folder of its own cannot be packed", where=str(file))
    entries = {entry.key: entry.value for entry in payload.tensor.external_data}
    return Stored(payload.tensor, file, int(entries.get("offset", 0)), mapped)


@dataclass(frozen=True)
class _Seen:
    """A float initializer as a node sees it: its axes in this order, those of length 1 that it does not see first."""

    name: str
    order: tuple[int, ...]
    shape: tuple[int, ...]


def _scalings(proto: ModelProto, known: Mapping[str, Stored]) -> Iterator[tuple[str, Scaling]]:
    seen = {
        name: _Seen(one.name, tuple(range(len(one.dims))), one.dims)
        for name, one in known.items()
        if one.element in ELEMENTS
    }
    makers, done = dict[str, NodeProto](), set[str]()
    for node in proto.graph.node:
        makers.update(dict.fromkeys(node.output, node))
        read = seen.get(node.input[0]) if node.input else None
        if read is None:
            continue
        if node.op_type == "QuantizeLinear" and read.name not in done:
            scaling = _scaling(node, read, known, makers)
            if scaling is not None:
                done.add(read.name)
                yield read.name, scaling
        elif (after := _laid_out(node, read, known)) is not None:
            seen[node.output[0]] = after


def _laid_out(node: NodeProto, read: _Seen, known: Mapping[str, Stored]) -> _Seen | None:
    hidden = len(read.order) - len(read.shape)
    if node.op_type == "Identity":
        return read
    if node.op_type == "Transpose":
        order = _attributes(node).get("perm", range(len(read.shape))[::-1])
        kept = [read.order[hidden + axis] for axis in order]
        return _Seen(read.name, (*read.order[:hidden], *kept), tuple(read.shape[axis] for axis in order))
    if node.op_type == "Squeeze":
        given = known.get(node.input[1]) if len(node.input) > 1 else None
        if given is None or given.element != "int64":
            return None
        dropped = {int(axis) % len(read.shape) for axis in given.values().reshape(-1)}
        if any(read.shape[axis] != 1 for axis in dropped):
            return None
        kept = [axis for axis in range(len(read.shape)) if axis not in dropped]
        order = (*read.order[:hidden], *(read.order[hidden + axis] for axis in (*sorted(dropped), *kept)))
        return _Seen(read.name, order, tuple(read.shape[axis] for axis in kept))
    return None


def _scaling(
    node: NodeProto, read: _Seen, known: Mapping[str, Stored], makers: Mapping[str, NodeProto]
) -> Scaling | None:
    attributes = _attributes(node)
    grid = _grid(node, attributes, known)
    scale, outer = _scales(node.input[1], known, makers)
    if grid is None or scale is None or (outer is not None and outer.dims not in ((), (1,))):
        return None
    element = known[read.name].element
    shape, block = read.shape, int(attributes.get("block_size", 0))
    axis = None if scale.dims in ((), (1,)) else int(attributes.get("axis", 1)) % max(1, len(shape))
    return Scaling(element, grid, scale.name, outer.name if outer else "", read.order, shape, axis, block)


def _scales(
    name: str, known: Mapping[str, Stored], makers: Mapping[str, NodeProto]
) -> tuple[Stored | None, Stored | None]:
    """The initializer with the scales, and the one with the scale over them."""
    if name in known:
        return known[name], None
    maker = makers.get(name)
    if maker is None or maker.op_type != "DequantizeLinear" or any(part not in known for part in maker.input[:2]):
        return None, None
    return known[maker.input[0]], known[maker.input[1]]


def _grid(node: NodeProto, attributes: Mapping[str, Any], known: Mapping[str, Stored]) -> str | None:
    """The numpy type of the codes that a QuantizeLinear makes."""
    kind = int(attributes.get("output_dtype", 0)) or TensorProto.UINT8
    if len(node.input) > 2 and node.input[2] in known:
        kind = known[node.input[2]].tensor.data_type
    fmt = natural(TensorProto.DataType.Name(kind).lower())
    if fmt is None or fmt.stored:
        return None
    return fmt.grid if fmt.grid in GRIDS else INTEGERS if not fmt.grid and fmt.bits <= 8 else None


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
