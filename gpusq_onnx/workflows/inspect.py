"""`inspect`: each weight of a model, the kernel that TensorRT can choose for it, and what is in the way."""

from __future__ import annotations

from gpusq_onnx.graph.blame import blaming
from gpusq_onnx.graph.io import load
from gpusq_onnx.graph.model import Model
from gpusq_onnx.progress import NullProgress, Progress
from gpusq_onnx.report.inspection import Inspection, inspect_model
from gpusq_onnx.wording import worded
from gpusq_onnx.workflows.models import AnyModel, as_file


@worded
def inspect(
    model: AnyModel,
    *,
    progress: Progress = NullProgress(),  # noqa: B008 - it has no state
) -> Inspection:
    """Look at every weight; nothing is changed.

    Raises:
        UsageError: there is no such file.
        UnsupportedModelError: a file that is no model, or one that cannot be used.
    """
    if isinstance(model, Model):
        return inspect_model(model, progress)
    with as_file(model) as path, blaming(path):
        return inspect_model(load(path), progress)
