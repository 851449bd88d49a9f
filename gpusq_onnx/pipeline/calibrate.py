"""Run the model over the calibration data and show chosen activations to a visitor, one batch at a time.

The graph that runs is the model with the wanted tensors as its only outputs, in floating point, through onnxruntime.
Nothing is kept between batches but what the visitor keeps, so memory does not grow with the number of images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.data.source import Source
from gpusq_onnx.errors import UnsupportedDataError, UnsupportedModelError
from gpusq_onnx.files import Scratch
from gpusq_onnx.graph import io
from gpusq_onnx.graph.model import Model
from gpusq_onnx.pipeline.progress import Progress

BATCH = 4  # enough to keep two cores busy; the activations of this many images are all that is held

Visitor = Callable[[Mapping[str, NDArray[Any]]], None]


class Calibration:
    """A model opened for looking inside; use as a context manager.

    Args:
        model: as it is now; later edits are not seen.
        tensors: names of the tensors that visitors get.
        source: the images.
    """

    def __init__(self, model: Model, tensors: Sequence[str], source: Source, progress: Progress) -> None:
        self._model, self._tensors = model, list(dict.fromkeys(tensors))
        self._source, self._progress = source, progress
        self._folder = Scratch()
        self._last: tuple[Mapping[str, NDArray[Any]], int] | None = None

    def __enter__(self) -> Calibration:
        from gpusq_onnx.runtime.ort import Session

        path = self._folder.path / "tapped.onnx"
        io.write_tapped(self._model, path, self._tensors)
        self._session = Session(path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._session  # it maps the weights from the folder
        self._folder.remove()

    def run(self, visit: Visitor, label: str, images: int | None = None) -> int:
        """Hand the tensors of every batch (of about the first `images`) to `visit`; returns the images seen.

        The last batch stays in memory: where it holds `images` or more, they are these and nothing runs again.

        Raises:
            UnsupportedDataError: the source yields no image.
        """
        if images is not None and self._last is not None and self._last[1] >= images:
            visit(self._last[0])
            return self._last[1]
        seen = 0
        self._progress.start(label, min(len(self._source), images or len(self._source)))
        for batch in self._source.batches(BATCH):
            self._last = None  # or two batches of activations lie in memory
            found = self._session.run(batch.feed, self._tensors)
            rows = len(next(iter(batch.feed.values())))
            if batch.size < rows:
                found = {name: value[: len(value) * batch.size // rows] for name, value in found.items()}
            try:
                visit(found)
            except ValueError as error:
                require_finite(self._model, found, error)
                raise
            self._last = found, batch.size
            del found
            seen += batch.size
            self._progress.advance(batch.size)
            if images is not None and seen >= images:
                break
        self._progress.finish()
        if not seen:
            raise UnsupportedDataError("the calibration data is empty", hint="point --data at a folder with images")
        return seen


def require_finite(model: Model, found: Mapping[str, NDArray[Any]], error: Exception | None = None) -> None:
    """Refuse a model in which one of these tensors, with its values, holds NaN or infinity.

    Raises:
        UnsupportedModelError: names the tensor and the node that makes it; caused by `error`.
    """
    for name, values in found.items():
        if values.dtype.kind not in "iub" and not np.isfinite(np.asarray(values, np.float32)).all():
            makers = [node for node in model.graph.nodes if any(tensor.name == name for tensor in node.outputs)]
            raise UnsupportedModelError(
                f"the activation {name!r} holds NaN or infinity",
                where=f"made by node {makers[0].name!r} ({makers[0].op})" if makers else "a graph input",
                expected="finite numbers for every image",
                hint="huge weights overflow float32 here: check the original checkpoint, and the images",
            ) from error
