"""Parquet files of encoded images and labels, as Hugging Face's data sets come.

Columns, found by type: the images are a struct {bytes, path} or a binary column (`image` or `img` before others), the
labels an integer column (`label` or `labels` before others; none: no labels). A label is the class index as it is.

Going through all images reads the files once, in order, a few hundred rows at a time. For reading by index, the chosen
images' bytes are first unpacked into a scratch file, which vanishes with the source; memory holds places, not images.
`samples = k` takes k rows spread evenly over the classes, chosen by the seed, in file order.

Source: Apache Parquet through pyarrow (extra `data`). Limits: images inside the file, not beside it.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from functools import cached_property
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.data.images import Images
from gpusq_onnx.data.listing import shards, spread
from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.reading import reading
from gpusq_onnx.data.source import ImageInputs
from gpusq_onnx.errors import EnvironmentLacking, UnsupportedDataError

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 256  # read at a time


class ParquetImages(Images):
    """The images of a Parquet file, or of all files `*.parquet` of a folder in the order of their names.

    Raises on opening: EnvironmentLacking (pyarrow is not installed), UnsupportedDataError (not Parquet, no column of
    images, no rows), UsageError (an option against the model).
    """

    kind = "parquet"

    def __init__(self, path: Path, options: DataOptions, inputs: ImageInputs) -> None:
        self._files = shards(path, ".parquet")
        if not self._files:
            raise UnsupportedDataError(f"no Parquet file in {path}", expected="files ending in .parquet")
        schema = _schema(self._files[0])
        self._image = _image_column(schema, path)
        column = _label_column(schema)
        labels, total = self._read_labels(column)
        if not total:
            raise UnsupportedDataError(f"{path} holds no rows", expected="one or more images")
        self._rows = spread(total, labels, options.samples, options.seed)
        chosen = None if labels is None else labels[np.asarray(self._rows)]
        ignored = ["the classes file is not needed: the labels are class indices already"] if options.classes else []
        super().__init__(path, options, inputs, len(self._rows), chosen, total, ignored)
        self._turn = Lock()
        self._forward: Iterator[tuple[int, bytes]] = iter(())
        self._next = -1

    def digest(self) -> str:
        whole = hashlib.sha256()
        for index, data in self._in_order():
            label = b"" if self.labels is None else str(self.labels[index]).encode()
            whole.update(hashlib.sha256(data).digest() + label + b"\0")
        return whole.hexdigest()

    def name(self, index: int) -> str:
        return f"row {self._rows[index]}"

    def _file(self, index: int, in_order: bool) -> Path | BytesIO:
        return BytesIO(self._following(index) if in_order else self._scratch.read(index))

    def _following(self, index: int) -> bytes:
        """The image's bytes, by going forwards from the last one that was asked for."""
        with self._turn:
            if index != self._next:
                self._forward = ((i, data) for i, data in self._in_order() if i >= index)
            found, data = next(self._forward)
            self._next = found + 1
            return data

    def _in_order(self) -> Iterator[tuple[int, bytes]]:
        """(index, bytes) of all chosen images."""
        index, start = 0, 0
        for batch in self._record_batches(self._image):
            stop = start + batch.num_rows
            column = batch.column(0)
            while index < len(self) and self._rows[index] < stop:
                value = column[int(self._rows[index]) - start].as_py()
                yield index, (value.get("bytes") if isinstance(value, dict) else value) or b""
                index += 1
            start = stop

    def _read_labels(self, column: str | None) -> tuple[NDArray[np.int64] | None, int]:
        """The labels and the number of rows."""
        import pyarrow.parquet as pq

        total = 0
        for file in self._files:
            with reading(file, _unreadable):
                total += pq.ParquetFile(file).metadata.num_rows
        if column is None or not total:
            return None, total
        parts = [batch.column(0).to_numpy(zero_copy_only=False) for batch in self._record_batches(column)]
        labels = np.concatenate(parts)
        if labels.dtype.kind not in "iu":  # some are null
            return None, total
        return labels.astype(np.int64), total

    def _record_batches(self, column: str) -> Iterator[pa.RecordBatch]:
        for file in self._files:
            yield from _record_batches(file, column)

    @cached_property
    def _unpacked(self) -> _Scratch:
        return _Scratch(data for _, data in self._in_order())

    @property
    def _scratch(self) -> _Scratch:
        with self._turn:
            return self._unpacked


class _Scratch:
    """Pieces of bytes, one after the other in a file without a name, to be read in any order."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="gpusq-onnx-")  # noqa: SIM115 - open as long as the source
        lengths = [self._file.write(piece) for piece in pieces]
        self._file.flush()
        self._ends: NDArray[np.int64] = np.cumsum([0, *lengths], dtype=np.int64)
        self._turn = Lock()

    def read(self, index: int) -> bytes:
        start, stop = int(self._ends[index]), int(self._ends[index + 1])
        if hasattr(os, "pread"):
            return os.pread(self._file.fileno(), stop - start, start)
        with self._turn:
            self._file.seek(start)
            return self._file.read(stop - start)


def _record_batches(file: Path, column: str) -> Iterator[pa.RecordBatch]:
    import pyarrow.parquet as pq

    with reading(file, _unreadable):
        batches = pq.ParquetFile(file).iter_batches(ROWS, columns=[column])
    while True:
        with reading(file, _unreadable):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def _schema(file: Path) -> pa.Schema:
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise EnvironmentLacking(
            "Parquet files are read by pyarrow, which is not installed",
            where=str(file),
            found=str(error),
            hint="pip install 'gpusq-onnx[data]'",
        ) from error
    with reading(file, _unreadable):
        return pq.read_schema(file)


def _image_column(schema: pa.Schema, path: Path) -> str:
    import pyarrow as pa

    def holds_images(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            names = [kind.field(index).name for index in range(kind.num_fields)]
            return "bytes" in names
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    found = [field.name for field in schema if holds_images(field.type)]
    if not found:
        raise UnsupportedDataError(
            f"no column of {path} holds encoded images",
            expected="a struct {bytes, path} or binary",
            found=", ".join(f"{field.name}: {field.type}" for field in schema),
        )
    return next((name for name in ("image", "img") if name in found), found[0])


def _label_column(schema: pa.Schema) -> str | None:
    import pyarrow as pa

    found = [field.name for field in schema if pa.types.is_integer(field.type)]
    return next((name for name in ("label", "labels", "fine_label") if name in found), found[0] if found else None)


def _unreadable(file: Path, error: Exception) -> UnsupportedDataError:
    return UnsupportedDataError(
        f"cannot read {file}",
        expected="a Parquet file",
        found=next(iter(str(error).splitlines()), type(error).__name__),
    )
