"""Models as callers hold them, and as everything below takes them: a file.

    a path              as it is
    onnx.ModelProto     written to a scratch folder, with external data where it is larger than protobuf allows
    graph.model.Model   the same, streamed

`load` and `save` are the API's own: one reads a model as passes see it, the other writes either kind, all or nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import onnx

from gpusq_onnx.errors import UsageError
from gpusq_onnx.files import staged
from gpusq_onnx.graph import io
from gpusq_onnx.graph.model import Model, from_proto
from gpusq_onnx.scratch import Scratch, naming

AnyModel: TypeAlias = str | os.PathLike[str] | onnx.ModelProto | Model

IN_MEMORY = "model.onnx"
"""What a model that came as no file is called in reports."""


@contextmanager
def as_file(model: AnyModel) -> Iterator[Path]:
    """The model's file, for as long as the block lasts. Errors from the block that name a copy of it name it instead.

    Raises:
        UsageError: neither a path nor a model.
    """
    with naming(name_of(model)):
        if isinstance(model, (str, os.PathLike)):
            yield Path(model)
            return
        with Scratch() as folder:
            path = folder / IN_MEMORY
            save(model, path)
            yield path


def name_of(model: AnyModel) -> str:
    """The path as the caller gave it; of a model in memory, `IN_MEMORY`."""
    return os.fspath(model) if isinstance(model, (str, os.PathLike)) else IN_MEMORY


def load(path: str | os.PathLike[str]) -> Model:
    """Read a model as passes see it: at opset 20 or newer, without what runtimes refuse; large weights stay on disk.

    Raises:
        UsageError: there is no such file.
        UnsupportedModelError: not ONNX, truncated, an opset that is not supported, external data that is missing.
    """
    return io.load(Path(path))


def save(model: onnx.ModelProto | Model, path: str | os.PathLike[str]) -> str:
    """Write a model, all or nothing; with `PATH.data` beside it where it had external data, or is over 2 GiB.

    Returns:
        The SHA-256 of the file followed by its data file, as hex.

    Raises:
        UsageError: no model.
        OSError: the disk is full or the folder cannot be written; nothing is left.
    """
    path = Path(path)
    if isinstance(model, Model):
        return io.save(model, path)
    if not isinstance(model, onnx.ModelProto):
        raise UsageError(
            "this is no model",
            expected="a path, an onnx.ModelProto or gpusq_onnx.load(path)",
            found=type(model).__name__,
        )
    try:
        data = model.SerializeToString(deterministic=True)
    except ValueError:  # over 2 GiB
        copied = onnx.ModelProto()
        copied.CopyFrom(model)
        return io.save(from_proto(copied, None), path)
    with staged() as results:
        results.place(path).write_bytes(data)
    return io.file_digest(path)
