"""The bytes of one initializer, decoded only when somebody looks at them.

A model's weights stay where the file put them (in the model file or an external data file, both mapped read-only)
until a pass reads or replaces one, so a pass that touches one weight holds one weight twice, not the model.

Source: ONNX TensorProto and "external data" (onnx/docs/ExternalData.md). Limits: external locations must lie inside the
model's own folder, as the ONNX specification demands.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnx_graphsurgeon.ir.tensor import LazyValues

from gpusq_onnx.errors import UnsupportedModelError

# Bits of the types below a byte; the later ones exist in newer onnx packages only.
_NARROW = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2, "FLOAT6E2M3": 6, "FLOAT6E3M2": 6}
SUB_BYTE = {getattr(TensorProto, name): bits for name, bits in _NARROW.items() if hasattr(TensorProto, name)}

_DIGITS = 19  # of a count in an external data entry: 2**63 has as many


class Payload(LazyValues):  # type: ignore[misc]  # graphsurgeon is untyped
    """An initializer as graphsurgeon's lazy values, whatever its storage and type.

    Args:
        tensor: the TensorProto as parsed.
        folder: the folder that relative external locations start from.
        embedded: its bytes, uint8[n] in the mapped model file, where `tensor` was parsed without them.
    """

    def __init__(
        self, tensor: TensorProto, folder: Path | None = None, embedded: NDArray[np.uint8] | None = None
    ) -> None:
        self.tensor = tensor
        self.folder = folder
        self.embedded = embedded
        self.shape = tuple(tensor.dims)
        try:
            self.dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
        except KeyError:
            raise UnsupportedModelError(
                f"initializer {tensor.name!r} has a data type that onnx {onnx.__version__} does not know",
                found=str(tensor.data_type),
            ) from None
        self.nbytes = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
        self.packed = packed_bytes(tensor.data_type, self.shape)
        inside = self._inside()
        if inside is not None and len(inside) != self.packed:
            raise UnsupportedModelError(
                f"initializer {tensor.name!r} does not hold what its shape {self.shape} says",
                expected=f"{self.packed} bytes",
                found=f"{len(inside)} bytes",
                hint="export or copy the file again",
            )

    @property
    def external(self) -> bool:
        """Whether the bytes lie in another file."""
        return bool(self.tensor.data_location == TensorProto.EXTERNAL)

    @property
    def in_file(self) -> bool:
        """Whether the bytes lie in a file, not in memory."""
        return self.external or self.embedded is not None

    @property
    def mapped(self) -> NDArray[np.uint8] | None:
        """The bytes, uint8[n] read-only, where they lie in a file: its own or the model's; None for those in memory."""
        return self.external_bytes() if self.external else self.embedded

    def load(self) -> NDArray[Any]:
        """The values as an array of the ONNX type (bfloat16 and smaller through ml_dtypes)."""
        mapped = self.mapped
        if mapped is None or not self._is_plain(mapped):
            return numpy_helper.to_array(self.inlined() if self.in_file else self.tensor)
        values = self._lying(mapped).copy()  # the file aligns nothing
        _let_go(mapped)
        return values

    def peek(self) -> NDArray[Any]:
        """The same where it lies, read-only and perhaps not aligned: for who looks at a few of many values.

        What cannot be looked at there (types below a byte, typed fields) is decoded.
        """
        mapped = self.mapped
        return self._lying(mapped) if mapped is not None and self._is_plain(mapped) else self.load()

    def sum(self) -> np.float32:
        """The sum of all values in float32, of a numeric type: not finite where a value is not, or it overflows."""
        with np.errstate(over="ignore"):
            total: np.float32 = np.sum(self.peek(), dtype=np.float32)
        if self.embedded is not None:
            _let_go(self.embedded)  # another file's map is gone already
        return total

    def _is_plain(self, mapped: NDArray[np.uint8]) -> bool:
        """Whether the bytes are the values as numpy has them."""
        return len(mapped) > 0 and self.tensor.data_type not in SUB_BYTE and sys.byteorder == "little"

    def _lying(self, mapped: NDArray[np.uint8]) -> NDArray[Any]:
        return np.ndarray(self.shape, self.dtype, mapped.data)

    def inlined(self) -> TensorProto:
        """The tensor with its bytes inside, wherever they lie."""
        loaded = TensorProto()
        loaded.CopyFrom(self.tensor)
        mapped = self.mapped
        if mapped is not None:
            loaded.data_location = TensorProto.DEFAULT
            del loaded.external_data[:]
            loaded.raw_data = mapped.tobytes()
            _let_go(mapped)
        return loaded

    def _inside(self) -> Sized | None:
        """The raw bytes that came with the model file; None for external data and for typed fields."""
        if self.embedded is not None:
            return self.embedded
        return self.tensor.raw_data if self.tensor.HasField("raw_data") and not self.external else None

    @property
    def file(self) -> Path:
        """The external file, links followed."""
        assert self.folder is not None
        location = next((e.value for e in self.tensor.external_data if e.key == "location"), "")
        return (self.folder / location).resolve()

    def external_bytes(self) -> NDArray[np.uint8]:
        """The external bytes as a read-only memory map of length n.

        Raises:
            UnsupportedModelError: the file is missing, too short, or outside the model's folder.
        """
        assert self.folder is not None
        entry = {e.key: e.value for e in self.tensor.external_data}
        location = entry.get("location", "")
        path = self.file
        name = self.tensor.name
        if not location or not path.is_relative_to(self.folder.resolve()):
            raise UnsupportedModelError(
                f"external data of {name!r} lies outside the model's folder",
                where=str(self.folder),
                expected="a relative path below that folder",
                found=repr(location),
                hint="re-export the model with its data beside it",
            )
        if not path.is_file():
            raise UnsupportedModelError(
                f"external data of {name!r} is missing",
                where=str(path),
                hint="copy the data file next to the model",
            )
        offset, length = (_number(entry.get(key, default)) for key, default in (("offset", 0), ("length", self.packed)))
        available = max(0, min(length, path.stat().st_size - offset)) if offset >= 0 else 0
        if available != self.packed or length != self.packed:
            raise UnsupportedModelError(
                f"external data of {name!r} is truncated, or its place in the file is wrong",
                where=str(path),
                expected=f"{self.packed} bytes for the shape {self.shape}",
                found=f"{available} bytes (offset {entry.get('offset', '0')}, length {entry.get('length', '-')})",
                hint="copy the data file again",
            )
        if length == 0:
            return np.zeros(0, np.uint8)
        return np.memmap(path, np.uint8, "r", offset, (length,))


def packed_bytes(data_type: int, shape: Sequence[int]) -> int:
    """The bytes of a tensor as ONNX stores it: types below a byte are packed."""
    bits = SUB_BYTE.get(data_type) or 8 * np.dtype(onnx.helper.tensor_dtype_to_np_dtype(data_type)).itemsize
    return -(-int(np.prod(shape, dtype=np.int64)) * bits // 8)


def _number(text: str | int) -> int:
    """A count in an external data entry; -1 for what is none."""
    digits = str(text)
    return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) <= _DIGITS else -1


class Header(LazyValues):  # type: ignore[misc]
    """A placeholder without bytes, so that a graph can be exported and looked at without its weights."""

    def __init__(self, name: str, data_type: int, shape: tuple[int, ...], origin: TensorProto | None) -> None:
        self.tensor = TensorProto(name=name, data_type=data_type, dims=shape)
        if origin is not None:
            self.tensor.doc_string = origin.doc_string
            self.tensor.metadata_props.extend(origin.metadata_props)
        self.shape, self.dtype = shape, np.dtype(onnx.helper.tensor_dtype_to_np_dtype(data_type))

    def load(self) -> NDArray[Any]:
        """Never called: a header holds no values."""
        raise AssertionError(f"{self.tensor.name}: a header has no values")


def _let_go(mapped: NDArray[np.uint8]) -> None:
    """Give back the memory of bytes in a mapped file, which come from there again when they are read again."""
    base: Any = mapped
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    if not isinstance(base, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED"):
        return
    start = mapped.ctypes.data - np.frombuffer(base, np.uint8).ctypes.data
    first, last = -(-start // mmap.PAGESIZE), (start + len(mapped)) // mmap.PAGESIZE
    if last > first:
        base.madvise(mmap.MADV_DONTNEED, first * mmap.PAGESIZE, (last - first) * mmap.PAGESIZE)
