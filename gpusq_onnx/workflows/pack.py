"""`pack` and `unpack`: a pruned model in the space that its pattern needs, and back, byte for byte."""

from __future__ import annotations

import os
from pathlib import Path

from gpusq_onnx.errors import UnsupportedModelError, UsageError
from gpusq_onnx.files import Staging, require_apart, require_place
from gpusq_onnx.graph.blame import blaming
from gpusq_onnx.graph.io import file_digest
from gpusq_onnx.graph.pack.archive import pack_model, read_contents, unpack_model
from gpusq_onnx.graph.pack.container import Contents
from gpusq_onnx.progress import NullProgress, Progress
from gpusq_onnx.wording import worded
from gpusq_onnx.workflows.models import AnyModel, as_file

SUFFIX = ".gpusq"


@worded
def pack(
    model: AnyModel,
    output: str | os.PathLike[str],
    *,
    progress: Progress = NullProgress(),  # noqa: B008 - it has no state
    results: Staging | None = None,
) -> Contents:
    """Store a pruned model in `output`, which appears complete or not at all.

    Args:
        results: write there, and leave it to the caller to commit.

    Raises:
        UsageError: there is no such file, or the packed file would overwrite the model.
        EnvironmentLacking: the folder of `output` cannot be written.
        UnsupportedModelError: not ONNX, or external data that is missing or in another folder.
        NothingMatched: no weight can be packed.
    """
    target = Path(output)
    with as_file(model) as path, blaming(path):
        require_apart(target, [path], "the packed file would overwrite the model")
        require_place(target, "the packed file")
        return pack_model(path, target if results is None else results.place(target, last=True), progress)


@worded
def unpack(
    packed: str | os.PathLike[str], output: str | os.PathLike[str] | None = None, *, force: bool = False
) -> Path:
    """Restore the model that was packed: the same bytes, or an error and nothing written.

    Args:
        output: None: the model's own name, beside the packed file.
        force: with no `output`, also over another file of that name.

    Returns:
        Where the model is now.

    Raises:
        UsageError: no such file, or another file is in the way.
        EnvironmentLacking: the folder of `output` cannot be written.
        UnsupportedModelError: no packed model, or a damaged one.
    """
    path = Path(packed)
    if path.suffix == ".onnx" and path.is_file():
        hint = "give it as it is, or the file that pack wrote, MODEL.gpusq"
        raise UnsupportedModelError("this is a model, and was not packed", where=str(path), hint=hint)
    first = read_contents(path).files[0]
    target = path.with_name(first.name) if output is None else Path(output)
    if output is None and not force and target.exists() and file_digest(target) != first.sha256:
        what, hint = "another model has the name of the packed one", "name a file with -o, or give --force"
        raise UsageError(what, where=str(target), hint=hint)
    require_apart(target, [path], "the model would overwrite the packed file")
    require_place(target, "the model")
    unpack_model(path, target)
    return target
