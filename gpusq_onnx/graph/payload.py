"""The bytes of one initializer, decoded only when somebody looks at them.

A model's weights stay where the file put them (inside the parsed protobuf, or in an external data file mapped
read-only) until a pass reads or replaces one, so a pass that touches one weight holds one weight twice, not the model.

Source: ONNX TensorProto and "external data" (onnx/docs/ExternalData.md). Limits: external locations must lie inside the
model's own folder, as the ONNX specification demands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnx_graphsurgeon.ir.tensor import LazyValues

from gpusq_onnx.errors import UnsupportedModelError


class Payload(LazyValues):  # type: ignore[misc]  # graphsurgeon is untyped
    """An initializer as graphsurgeon's lazy values, whatever its storage and type.

    Args:
        tensor: the TensorProto as parsed.
        folder: the folder that relative external locations start from.
    """

    def __init__(self, tensor: TensorProto, folder: Path | None = None) -> None:
        self.tensor = tensor
        self.folder = folder
        self.shape = tuple(tensor.dims)
        try:
            self.dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
        except KeyError:
            raise UnsupportedModelError(
                f"initializer {tensor.name!r} has a data type that onnx {onnx.__version__} does not know",
                found=str(tensor.data_type),
            ) from None
        self.nbytes = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def external(self) -> bool:
        """Whether the bytes lie in another file."""
        return bool(self.tensor.data_location == TensorProto.EXTERNAL)

    def load(self) -> NDArray[Any]:
        """The values as an array of the ONNX type (bfloat16 and smaller through ml_dtypes)."""
        if not self.external:
            return numpy_helper.to_array(self.tensor)
        loaded = TensorProto()
        loaded.CopyFrom(self.tensor)
        loaded.data_location = TensorProto.DEFAULT
        del loaded.external_data[:]
        loaded.raw_data = self.external_bytes().tobytes()
        return numpy_helper.to_array(loaded)

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
        offset = int(entry.get("offset", 0))
        length = int(entry.get("length", self._packed_bytes()))
        size = path.stat().st_size
        if offset + length > size or length < self._packed_bytes():
            raise UnsupportedModelError(
                f"external data of {name!r} is truncated",
                where=str(path),
                expected=f"{self._packed_bytes()} bytes at offset {offset}",
                found=f"{max(0, min(length, size - offset))} bytes",
                hint="copy the data file again",
            )
        if length == 0:
            return np.zeros(0, np.uint8)
        return np.memmap(path, np.uint8, "r", offset, (length,))

    def _packed_bytes(self) -> int:
        elements = int(np.prod(self.shape, dtype=np.int64))
        bits = 4 if self.tensor.data_type in (TensorProto.INT4, TensorProto.UINT4) else 8 * self.dtype.itemsize
        return -(-elements * bits // 8)


class Header(LazyValues):  # type: ignore[misc]
    """A stand-in without bytes, so that a graph can be exported and looked at without its weights."""

    def __init__(self, name: str, data_type: int, shape: tuple[int, ...], origin: TensorProto | None) -> None:
        self.tensor = TensorProto(name=name, data_type=data_type, dims=shape)
        if origin is not None:
            self.tensor.doc_string = origin.doc_string
            self.tensor.metadata_props.extend(origin.metadata_props)
        self.shape, self.dtype = shape, np.dtype(onnx.helper.tensor_dtype_to_np_dtype(data_type))

    def load(self) -> NDArray[Any]:
        """Never called: a header holds no values."""
        raise AssertionError(f"{self.tensor.name}: a header has no values")
