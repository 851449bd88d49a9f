"""One ONNX node while it is converted: its inputs as values, its attributes, and how rows of the table are written.

A row of the table is (operator, since, emit): `emit` takes a `Call` and returns the output values. It implements the
operator as it has been since that opset; `newest` takes the newest that is not newer than the model's opset.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gpusq_onnx.graph.model import Node
from gpusq_onnx.torchgraph.builder import Affine, Builder, Size, Unsupported, Value

Emitted = Value | Sequence[Value]
Emit = Callable[["Call"], Emitted]


class OperatorRow(NamedTuple):
    """One implementation: of `op`, as it has been since opset `since`."""

    op: str
    since: int
    emit: Emit


class Call:
    """A node with its inputs.

    Attributes:
        node: the ONNX node.
        builder: where its functions are called.
        inputs: its inputs; None where an optional one is left out.
    """

    def __init__(self, node: Node, builder: Builder, inputs: Sequence[Value | None]) -> None:
        self.node, self.builder, self.inputs = node, builder, inputs

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a torch function (see `Builder.call`)."""
        return self.builder.call(function, *args, **kwargs)

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute, or its default."""
        return self.node.attrs.get(name, default)

    def has(self, index: int) -> bool:
        """Whether an optional input is given."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def x(self, index: int) -> Value:
        """A required input."""
        value = self.inputs[index] if index < len(self.inputs) else None
        if value is None:
            raise Unsupported(f"input {index} is missing")
        return value

    def optional(self, index: int) -> Value | None:
        """An optional input."""
        return self.x(index) if self.has(index) else None

    def axis(self, default: int, rank: int | None = None) -> int:
        """The attribute `axis`, counted from the front."""
        return int(self.attr("axis", default)) % max(1, self.x(0).ndim if rank is None else rank)

    def text(self, name: str, default: str = "") -> str:
        """An attribute that is text."""
        value = self.attr(name, default)
        return value.decode() if isinstance(value, bytes) else str(value)

    def sizes(self, index: int) -> list[Size]:
        """The integers of an input that is known: numbers, or sizes that depend on the batch."""
        value = self.x(index)
        if not value.known:
            raise Unsupported(
                f"input {index} ({self.node.inputs[index].name}) depends on the data, not on shapes alone"
            )
        return self.builder.elements(value)

    def ints(self, index: int) -> list[int]:
        """The integers of a known input that do not depend on the batch."""
        sizes = self.sizes(index)
        if any(isinstance(size, Affine) for size in sizes):
            raise Unsupported(f"input {index} ({self.node.inputs[index].name}) depends on the batch size")
        return [size for size in sizes if isinstance(size, int)]

    def each(self, index: int) -> list[list[int]]:
        """The integers of a known input, batch size by batch size."""
        sizes = self.sizes(index)
        return [[s.at(b) if isinstance(s, Affine) else s for s in sizes] for b in self.builder.batches]

    def number(self, index: int) -> float | int | bool:
        """The one number of a known input."""
        value = self.x(index)
        if not value.uniform or value.worlds[0].numel() != 1:
            raise Unsupported(f"input {index} ({self.node.inputs[index].name}) is not one known number")
        number: float | int | bool = value.worlds[0].item()
        return number

    def scalar_or(self, index: int, other: Value) -> Value | float | int | bool:
        """A known single number as a Python scalar, which costs nothing beside a tensor; anything else as it is."""
        value = self.x(index)
        if not other.known and value.uniform and value.worlds[0].numel() == 1 and value.ndim <= other.ndim:
            return self.number(index)
        return value

    def reshaped(self, value: Value, shapes: Iterable[Sequence[int]]) -> Value:
        """`value` in a shape given at each batch size, all entries resolved."""
        targets = [tuple(shape) for shape in shapes]
        if all(tuple(world.shape) == target for world, target in zip(value.worlds, targets, strict=True)):
            return value
        sizes = [self.builder.fit(column) for column in zip(*targets, strict=True)]
        varying = [i for i, size in enumerate(sizes) if isinstance(size, Affine)]
        if len(varying) == 1 and not value.known:
            sizes[varying[0]] = -1
        reshaped: Value = self(torch.reshape, value, tuple(sizes))
        return reshaped


def unary(function: Callable[..., Any], **kwargs: Any) -> Emit:
    """A row's emit: function(x)."""

    def emit(c: Call) -> Value:
        result: Value = c(function, c.x(0), **kwargs)
        return result

    return emit


def binary(function: Callable[..., Any], neutral: float | None = None) -> Emit:
    """A row's emit: function(a, b) with numbers as scalars; `neutral` on the right (or left) changes nothing."""

    def emit(c: Call) -> Value:
        a, b = c.x(0), c.x(1)
        result: Value = c(function, c.scalar_or(0, b), c.scalar_or(1, a))
        if neutral is not None and not result.known:
            for kept, other in ((a, b), (b, a)):
                if _shapes(kept) == _shapes(result) and other.uniform and bool((other.worlds[0] == neutral).all()):
                    return kept
        return result

    return emit


def folded(function: Callable[[Any, Any], Any]) -> Emit:
    """A row's emit for any number of inputs: function(function(a, b), c) ..."""

    def emit(c: Call) -> Value:
        result = c.x(0)
        for index in range(1, len(c.inputs)):
            result = c(function, result, c.x(index))
        return result

    return emit


_WIDER = {
    **dict.fromkeys(("float16", "bfloat16"), torch.float32),
    **dict.fromkeys(("float8_e4m3fn", "float8_e5m2", "float4_e2m1fn"), torch.float32),
    **dict.fromkeys(("int2", "int4"), torch.int8),
    **dict.fromkeys(("uint2", "uint4"), torch.uint8),
}


def torch_type(dtype: np.dtype[Any]) -> torch.dtype:
    """The torch type that a tensor of this type is computed in: 16-bit floats in float32 (see convert), 4 bits in 8."""
    if dtype.name in _WIDER:
        return _WIDER[dtype.name]
    found = getattr(torch, {"bool": "bool"}.get(dtype.name, dtype.name), None)
    if not isinstance(found, torch.dtype):
        raise Unsupported(f"tensors of type {dtype.name} are not supported")
    return found


def fed(values: np.ndarray[Any, np.dtype[Any]]) -> Tensor:
    """An array that a caller feeds, in the type that it is computed in; shares memory where that is its own."""
    return tensor_of(values) if values.dtype.name in _WIDER else torch.from_numpy(values)


def tensor_of(values: np.ndarray[Any, np.dtype[Any]]) -> Tensor:
    """An initializer as a torch tensor of its own."""
    kind = torch_type(values.dtype)
    known = np.dtype(str(kind).removeprefix("torch.")) if values.dtype.name in _WIDER else values.dtype
    wide = np.array(values, known, copy=True)
    return torch.from_numpy(np.ascontiguousarray(wide).reshape(values.shape))


def table(*rows: Sequence[OperatorRow]) -> Mapping[str, Sequence[OperatorRow]]:
    """Rows by operator, newest first."""
    found: dict[str, list[OperatorRow]] = {}
    for row in (row for part in rows for row in part):
        found.setdefault(row.op, []).append(row)
    return {op: sorted(same, key=lambda row: -row.since) for op, same in found.items()}


def newest(rows: Sequence[OperatorRow], opset: int) -> OperatorRow | None:
    """The newest row that is not newer than `opset`."""
    return next((row for row in rows if row.since <= opset), None)


def _shapes(value: Value) -> list[torch.Size]:
    return [world.shape for world in value.worlds]
