"""Tensors from .npy (models with one input) and .npz (one array per input name, and optionally `labels`).

Rows are read one by one from the file or from the zip member, compressed or not: memory is one batch, where `np.load`
would hold whole arrays. Reading by index maps the file; an .npz is first unpacked into a scratch file, which vanishes
with the source. Arrays go in as they are: names, dtypes and shapes must be the model's, axis 0 the samples.

`samples = k` of N rows takes one row, chosen by the seed, from each of k equal stretches: spread even over a file that
is sorted by class, and read in one pass forwards.

Format: numpy.lib.format, versions 1.0 and 2.0. Limits: C order, no pickled objects.
"""

from __future__ import annotations

import hashlib
import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.reading import reading
from gpusq_onnx.data.source import (
    Batch,
    Box,
    InputSpec,
    Source,
    check_finite,
    common_batch,
    ready_made,
    require_whole,
    too_few,
)
from gpusq_onnx.errors import UnsupportedDataError
from gpusq_onnx.scratch import PREFIX, Scratch

LABELS = "labels"
IN_MEMORY = "data"
"""What arrays are called in errors that came from memory: they lie in a scratch file that nobody knows."""


@dataclass(frozen=True)
class _Column:
    """One array of the file. `member` is its name inside an .npz, None for an .npy."""

    file: Path
    member: str | None
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int

    @contextmanager
    def opened(self) -> Iterator[IO[bytes]]:
        with ExitStack() as stack:
            if self.member is None:
                yield stack.enter_context(self.file.open("rb"))
            else:
                archive = stack.enter_context(zipfile.ZipFile(self.file))
                yield stack.enter_context(archive.open(self.member))

    def read(self, stream: IO[bytes], rows: Sequence[int]) -> NDArray[Any]:
        """rows[n] (ascending) as dtype[n, ...]."""
        out = np.empty((len(rows), *self.shape[1:]), dtype=self.dtype)
        row_bytes = out[:1].nbytes
        with reading(self.file, _unreadable):
            for slot, row in enumerate(rows):
                stream.seek(self.start + row * row_bytes)
                data = stream.read(row_bytes)
                if len(data) != row_bytes:
                    raise EOFError(f"the file ends in row {row} of {self.shape[0]}")
                out[slot] = np.frombuffer(data, dtype=self.dtype).reshape(self.shape[1:])
        return out

    @property
    def nbytes(self) -> int:
        """Of all rows."""
        return math.prod(self.shape) * self.dtype.itemsize

    def mapped(self, folder: Path) -> NDArray[Any]:
        """All rows as a read-only memory map; the member of an .npz is unpacked into `folder`."""
        file, start = self.file, self.start
        if self.member is not None:
            file, start = folder / f"{len(list(folder.iterdir()))}.raw", 0
            with self.opened() as stream, file.open("wb") as unpacked:
                stream.seek(self.start)
                left = self.nbytes  # and no more than that, whatever else the member holds
                while left and (piece := stream.read(min(left, 1 << 16))):
                    left -= unpacked.write(piece)
        if file.stat().st_size < start + self.nbytes:
            raise EOFError("the file ends before its last row")
        return np.memmap(file, self.dtype, "r", start, self.shape)


class ArrayFile(Source):
    """The rows of an .npy or .npz. Raises UnsupportedDataError on opening when names, dtypes or shapes do not fit."""

    kind = "arrays"

    def __init__(self, path: Path, options: DataOptions, inputs: Sequence[InputSpec]) -> None:
        self._path = path
        self._inputs = inputs
        self._said = said = IN_MEMORY if path.parent.name.startswith(PREFIX) else str(path)
        self.static_batch = common_batch(inputs)
        with reading(path, _unreadable):
            columns = _npz_columns(path) if path.suffix == ".npz" else _npy_column(path, inputs)
        names = [spec.name for spec in inputs]
        self.labelled = LABELS in columns and LABELS not in names
        _check_names(said, list(columns), names)
        for spec in inputs:
            _check_fit(said, columns[spec.name], spec)
        if self.labelled:
            _check_labels(said, columns[LABELS])
        _check_counts(said, columns)
        self._columns = columns
        self._available = next(iter(columns.values())).shape[0]
        self._rows = _stretches(self._available, options.samples, options.seed)
        if self.labelled:
            with reading(path, _unreadable), columns[LABELS].opened() as stream:
                self.labels = columns[LABELS].read(stream, self._rows).astype(np.int64)
        self._notes = ready_made(options, "arrays") + too_few(options.samples, self._available)
        self._turn = Lock()

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def notes(self) -> list[str]:
        return list(self._notes)

    def batches(self, batch: int) -> Iterator[Batch]:
        size = self.static_batch or batch
        with ExitStack() as stack:
            with reading(self._path, _unreadable):
                streams = {name: stack.enter_context(column.opened()) for name, column in self._columns.items()}
            for start in range(0, len(self), size):
                rows = self._rows[start : start + size]
                read = {name: column.read(streams[name], rows) for name, column in self._columns.items()}
                labels = read.pop(LABELS).astype(np.int64) if self.labelled else None
                for name, array in read.items():
                    check_finite(name, array, f"{self._said}, rows {rows[0]} to {rows[-1]}")
                made = Batch(read, labels, len(rows), np.arange(start, start + len(rows)))
                yield made.filled(self.static_batch)

    def read(self, indices: Sequence[int], boxes: Sequence[Box] | None = None) -> Batch:
        require_whole("arrays", boxes)
        with self._turn:
            mapped = self._mapped
        rows = np.array([self._rows[index] for index in indices], dtype=np.int64)
        read = {name: column[rows] for name, column in mapped.items()}
        labels = read.pop(LABELS).astype(np.int64) if self.labelled else None
        for name, array in read.items():
            check_finite(name, array, f"{self._said}, rows {', '.join(map(str, rows[:8]))}, …")
        return Batch(read, labels, len(rows), np.array(indices, dtype=np.int64))

    @cached_property
    def _mapped(self) -> dict[str, NDArray[Any]]:
        self._folder = Scratch()
        with reading(self._path, _unreadable):
            return {name: column.mapped(self._folder.path) for name, column in self._columns.items()}

    def digest(self) -> str:
        whole = hashlib.sha256()
        for name, column in sorted(self._columns.items()):
            whole.update(f"{name} {column.dtype.str} {column.shape[1:]}\0".encode())
            with reading(self._path, _unreadable), column.opened() as stream:
                for row in self._rows:
                    whole.update(column.read(stream, [row]).tobytes())
        return whole.hexdigest()


def _stretches(available: int, samples: int | None, seed: int) -> Sequence[int]:
    """Ascending row numbers: all of them, or one of each of `samples` equal stretches."""
    if samples is None or samples >= available:
        return range(available)
    rows = []
    for index in range(samples):
        start, stop = index * available // samples, (index + 1) * available // samples
        draw = int.from_bytes(hashlib.sha256(f"{seed}/{index}".encode()).digest()[:8], "big")
        rows.append(start + draw % (stop - start))
    return rows


def _header(file: Path, member: str | None, stream: IO[bytes], available: int) -> _Column:
    """The array that begins here; `available` are the bytes that the file, or the unpacked member, has in all."""
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"format version {version} is not supported")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, not numbers")
    if fortran and len(shape) > 1:
        raise ValueError("it is in Fortran order: save np.ascontiguousarray(array)")
    if any(isinstance(size, bool) or size < 0 for size in shape) or not shape:
        raise ValueError(f"its shape {shape} is not one of samples")
    column = _Column(file, member, dtype, shape, stream.tell())
    if column.start + column.nbytes > available:
        raise ValueError(f"its header speaks of {column.nbytes} bytes, and there are {available - column.start}")
    return column


def _npy_column(path: Path, inputs: Sequence[InputSpec]) -> dict[str, _Column]:
    if len(inputs) != 1:
        raise UnsupportedDataError(
            f"{path} feeds one input, the model has {len(inputs)}",
            expected="an .npz with one array per input name",
            found="; ".join(str(spec) for spec in inputs),
        )
    with path.open("rb") as stream:
        return {inputs[0].name: _header(path, None, stream, path.stat().st_size)}


def _npz_columns(path: Path) -> dict[str, _Column]:
    columns = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            with archive.open(member) as stream:
                columns[member.filename.removesuffix(".npy")] = _header(path, member.filename, stream, member.file_size)
    return columns


def _check_names(said: str, found: list[str], inputs: list[str]) -> None:
    missing = [name for name in inputs if name not in found]
    extra = [name for name in found if name not in (*inputs, LABELS)]
    if missing or extra:
        says = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"holds unknown {', '.join(extra)}"] * bool(extra)
        raise UnsupportedDataError(
            f"{said} " + " and ".join(says),
            expected=f"the model's inputs ({', '.join(inputs)}), and {LABELS} if they are known",
            found=", ".join(found) or "no arrays",
            hint=f"np.savez(path, **{{{', '.join(f'{name!r}: array' for name in inputs)}}})",
        )


def _check_fit(said: str, column: _Column, spec: InputSpec) -> None:
    if not spec.takes(column.shape, any_batch=True) or column.dtype != spec.dtype:
        name = np.dtype(column.dtype).name
        wrong_type = spec.takes(column.shape, any_batch=True)
        unbatched = column.shape[1:] == spec.shape
        fix = f"the input has no batch axis: export it with one, [1, {', '.join(map(str, spec.shape))}]"
        raise UnsupportedDataError(
            f"{said} does not fit the model's input {spec.name!r}",
            expected=f"{spec}, axis 0 the samples",
            found=f"{name} {list(column.shape)}",
            hint=f"array.astype({spec.dtype.name!r})" if wrong_type else fix if unbatched else None,
        )


def _check_counts(said: str, columns: Mapping[str, _Column]) -> None:
    counts = {name: column.shape[0] for name, column in columns.items()}
    empty = not any(counts.values())
    if empty or len(set(counts.values())) != 1:
        raise UnsupportedDataError(
            f"{said} holds no samples" if empty else f"the arrays in {said} do not hold the same number of samples",
            expected="one or more samples" + ("" if len(counts) == 1 else ", as many in every array"),
            found=", ".join(f"{name}: {list(columns[name].shape) if empty else counts[name]}" for name in counts),
        )


def _check_labels(said: str, column: _Column) -> None:
    if column.dtype.kind not in "iu" or len(column.shape) != 1:
        raise UnsupportedDataError(
            f"{LABELS} in {said} are not class indices",
            expected="an integer array with one dimension",
            found=f"{column.dtype.name} {list(column.shape)}",
        )


def _unreadable(path: Path, error: Exception) -> UnsupportedDataError:
    return UnsupportedDataError(f"cannot read {path}", expected="an .npy or .npz written by NumPy", found=str(error))
