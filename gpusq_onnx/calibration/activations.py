"""Run the model over the calibration data and show chosen activations to a visitor, one batch at a time.

The graph that runs is the model with the wanted tensors as its only outputs, in floating point, through onnxruntime.
Nothing is kept between batches but what the visitor keeps, so memory does not grow with the number of images.

Nor does it grow with the model: what one run hands over is bounded by `sizes.BUDGET`. A batch has as many images as
fit; where the tensors of one image do not, they are watched in groups, each with a run of its own over the part of
the graph that makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gpusq_onnx.calibration.image_bytes import BUDGET, Shape, fitting, image_bytes
from gpusq_onnx.data.source import Source
from gpusq_onnx.errors import UnsupportedDataError, UnsupportedModelError
from gpusq_onnx.graph import io
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.wording import node_label
from gpusq_onnx.pipeline.schedule import CALIBRATING
from gpusq_onnx.progress import Progress
from gpusq_onnx.scratch import Scratch

if TYPE_CHECKING:
    from gpusq_onnx.runtime.ort import Session

Visitor = Callable[[Mapping[str, NDArray[Any]], int], None]  # tensors by name, and the images that they are of


class Calibration:
    """A model opened for looking inside; use as a context manager.

    Args:
        model: as it is now; later edits are not seen.
        tensors: names of the tensors that visitors get, those of a group in one call.
        shapes: the tensors' shapes, where they are known.
        source: the images.
        together: tensors that a visitor needs in the same call.
    """

    def __init__(
        self,
        model: Model,
        tensors: Sequence[str],
        shapes: Mapping[str, Shape],
        source: Source,
        progress: Progress,
        together: Iterable[Sequence[str]] = (),
    ) -> None:
        self._model, self._source, self._progress = model, source, progress
        self.batch, self.groups = _divide(image_bytes(model, dict.fromkeys(tensors), shapes, source), together)
        self._folder = Scratch()
        self._paths = [self._folder.path / f"tapped{index}.onnx" for index in range(len(self.groups))]
        self._open: tuple[int, Session] | None = None
        self._last: tuple[Mapping[str, NDArray[Any]], int] | None = None

    def __enter__(self) -> Calibration:
        for index, (path, tensors) in enumerate(zip(self._paths, self.groups, strict=True)):
            io.write_tapped(self._model, path, tensors, shared=self._paths[0] if index else None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = None  # it maps the weights from the folder
        self._folder.remove()

    def run(self, visit: Visitor, label: str, images: int | None = None) -> int:
        """Hand the tensors of every batch (of about the first `images`) to `visit`; returns the images seen.

        Each group is a call: all batches of the first, all of the second, ... The last batch of a single group stays in
        memory: where it holds `images` or more, they are these and nothing runs again.

        Raises:
            UnsupportedDataError: the source yields no image.
        """
        if images is not None and self._last is not None and self._last[1] >= images:
            visit(*self._last)
            return self._last[1]
        if not self.groups:
            return 0  # nothing is watched
        seen = 0
        total = min(len(self._source), images or len(self._source))
        work = CALIBRATING * total if images is None else 0.0
        self._progress.start(label, total * len(self.groups), work)
        for index in range(len(self.groups)):
            seen = self._run_group(index, visit, images)
        self._progress.finish()
        if not seen:
            raise UnsupportedDataError("the calibration data is empty", hint="point --data at a folder with images")
        return seen

    def _run_group(self, index: int, visit: Visitor, images: int | None) -> int:
        session, tensors = self._session(index), self.groups[index]
        seen = 0
        for batch in self._source.batches(self.batch):
            self._last = None  # or two batches of activations lie in memory
            found = session.run(batch.feed, tensors)
            if batch.size < batch.rows:
                found = {name: value[: len(value) * batch.size // batch.rows] for name, value in found.items()}
            try:
                visit(found, batch.size)
            except ValueError as error:
                require_finite(self._model, found, error)
                raise
            if len(self.groups) == 1:
                self._last = found, batch.size
            del found
            seen += batch.size
            self._progress.advance(batch.size)
            if images is not None and seen >= images:
                break
        return seen

    def _session(self, index: int) -> Session:
        from gpusq_onnx.runtime.ort import Session

        if self._open is None or self._open[0] != index:
            self._open = None
            self._open = index, Session(self._paths[index], file_order=len(self.groups) > 1)
        return self._open[1]


def _divide(sizes: Mapping[str, int], together: Iterable[Sequence[str]]) -> tuple[int, list[list[str]]]:
    """The images of a batch and the groups of tensors, so that a batch of a group fits the budget where it can."""
    batch = fitting(sum(sizes.values()))
    if batch:
        return batch, [list(sizes)] if sizes else []
    partners: dict[str, list[str]] = {}
    for one in together:
        merged = list(dict.fromkeys(other for name in one for other in partners.get(name, [name])))
        partners |= dict.fromkeys(merged, merged)
    groups: list[list[str]] = []
    room, placed = 0, set[str]()
    for name in sizes:
        if name in placed:
            continue
        unit = [each for each in partners.get(name, [name]) if each not in placed]
        placed.update(unit)
        size = sum(sizes[each] for each in unit)
        if not groups or size > room:
            groups.append([])
            room = BUDGET
        groups[-1] += unit
        room -= size
    return 1, groups


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
                where=f"made by {node_label(makers[0])}" if makers else "a graph input",
                expected="finite numbers for every image",
                hint="huge weights overflow float32 here: check the original checkpoint, and the images",
            ) from error
