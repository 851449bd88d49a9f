"""Data as callers hold it: a path, options, or arrays from memory.

    "images/", Path           what `--data` takes
    DataOptions               everything at once
    array [N, ...]            rows of the model's only input; a tensor of torch is an array, too
    {name: array [N, ...]}    rows by input, and "labels" (int64 [N]) where they are known
    an iterable of either     one batch after the other, of any size; gone through once

Arrays go to a scratch .npz, from where they are read as an .npz of the caller's is: the same samples, the same digest,
the same bytes of the model. Memory is one batch.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.errors import UsageError
from gpusq_onnx.graph import io
from gpusq_onnx.graph.model import Model
from gpusq_onnx.scratch import Scratch
from gpusq_onnx.workflows.models import AnyModel, as_file

Arrays: TypeAlias = NDArray[Any] | Mapping[str, NDArray[Any]]
AnyData: TypeAlias = str | os.PathLike[str] | DataOptions | Arrays | Iterable[Arrays] | None
AnyOptions: TypeAlias = Mapping[str, Any] | str | os.PathLike[str] | None

IN_MEMORY = "data.npz"
"""What arrays that came as no file are called in reports."""


@contextmanager
def opened(
    model: AnyModel, data: AnyData, options: AnyOptions = None, seed: int | None = None
) -> Iterator[DataOptions]:
    """The data options that everything below takes; arrays lie in a scratch file while the block lasts.

    Args:
        options: the other keys of `DataOptions` (resize, mean, samples, ...), or a TOML file of them.

    Raises:
        UsageError: an unknown key, a value out of range, options given twice, or data of another kind.
    """
    more = {} if seed is None else {"seed": seed}
    if isinstance(data, DataOptions):
        if options is not None:
            raise UsageError("the data options are given twice", where="data, data_options", hint="give one of them")
        yield data.model_copy(update=more) if more else data
        return
    if data is None or isinstance(data, (str, os.PathLike)):
        yield _options(None if data is None else Path(data), options, more)
        return
    with Scratch() as folder:
        yield _options(_spooled(data, model, folder), options, more)


def _options(path: Path | None, options: AnyOptions, more: Mapping[str, Any]) -> DataOptions:
    given = {**({} if path is None else {"path": path}), **more}
    if isinstance(options, (str, os.PathLike)):
        return DataOptions.from_toml(Path(options), given)
    return DataOptions.from_values({**(options or {}), **given}, where="data_options")


def _spooled(data: Any, model: AnyModel, folder: Path) -> Path:
    """The arrays as an .npz in `folder`, each written as it comes."""
    batches: Iterable[Any] = [data] if isinstance(data, Mapping) or _is_array(data) else data
    if not isinstance(batches, Iterable):
        raise UsageError(
            "this is no data",
            where="data",
            expected="a path, DataOptions, an array, a dict of arrays, or an iterable of these",
            found=type(data).__name__,
        )
    columns: dict[str, _Spool] = {}
    only = ""
    for number, batch in enumerate(batches):
        if isinstance(batch, Mapping):
            feed = batch
        else:
            only = only or _only_input(model)
            feed = {only: batch}
        if columns and set(feed) != set(columns):
            raise UsageError(
                f"batch {number} of the data has other names",
                where="data",
                expected=", ".join(columns),
                found=", ".join(map(str, feed)),
            )
        for name, rows in feed.items():
            column = columns.get(name) or columns.setdefault(name, _Spool(folder / f"{len(columns)}.raw", str(name)))
            column.add(_array(rows, number), number)
    if not columns:
        raise UsageError("the data is empty", where="data", expected="one or more batches")
    path = folder / IN_MEMORY
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, column in columns.items():
            column.move_into(archive, name)
    return path


def _is_array(data: Any) -> bool:
    """Whether it is one of NumPy's arrays, or becomes one: a tensor of torch."""
    return hasattr(data, "__array__") and hasattr(data, "ndim")


def _array(rows: Any, number: int) -> NDArray[Any]:
    try:
        return np.asarray(rows)
    except (TypeError, ValueError, RuntimeError) as error:  # of torch: on a GPU, or it requires a gradient
        raise UsageError(
            f"batch {number} of the data cannot become an array",
            where="data",
            expected="arrays, or tensors on the CPU",
            found=str(error),
            hint="for tensors of torch: tensor.detach().cpu()",
        ) from error


def _only_input(model: AnyModel) -> str:
    if not isinstance(model, Model):
        with as_file(model) as path:
            model = io.load(path)
    names = [spec.name for spec in model.inputs()]
    if len(names) != 1:
        raise UsageError(
            "one array cannot feed this model",
            where="data",
            expected=f"dicts with an array for each of {', '.join(names)}",
            found="an array",
        )
    return names[0]


class _Spool:
    """The rows of one name, on their way to a file."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name, self.rows = path, name, 0
        self.dtype: np.dtype[Any] | None = None
        self.shape: tuple[int, ...] = ()

    def add(self, rows: NDArray[Any], number: int) -> None:
        """Append rows of one kind."""
        if rows.dtype.hasobject or rows.ndim == 0:
            raise UsageError(
                f"batch {number} of the data holds no rows of numbers",
                where=f"data, {self.name!r}",
                expected="an array, axis 0 the samples",
                found=f"{rows.dtype} {list(rows.shape)}",
            )
        if self.dtype is not None and (rows.dtype, rows.shape[1:]) != (self.dtype, self.shape):
            raise UsageError(
                f"batch {number} of the data has another type or shape than those before",
                where=f"data, {self.name!r}",
                expected=f"{self.dtype} [N, {', '.join(map(str, self.shape))}]",
                found=f"{rows.dtype} {list(rows.shape)}",
            )
        rows = np.ascontiguousarray(rows)
        self.dtype, self.shape = rows.dtype, rows.shape[1:]
        self.rows += len(rows)
        with self.path.open("ab") as file:
            file.write(rows.data.cast("B") if rows.size else b"")

    def move_into(self, archive: zipfile.ZipFile, name: str) -> None:
        """All rows as a member of the .npz; the file they lay in goes."""
        assert self.dtype is not None
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False}
        with archive.open(f"{name}.npy", "w", force_zip64=True) as member, self.path.open("rb") as file:
            np.lib.format.write_array_header_2_0(member, {**header, "shape": (self.rows, *self.shape)})
            while piece := file.read(1 << 22):
                member.write(piece)
        self.path.unlink()
