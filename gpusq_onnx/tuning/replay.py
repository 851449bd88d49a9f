"""A model that runs once over the samples: its outputs are kept on disk, and given back each time they are asked for.

The dense model is compared with a dozen others on the same batches. Outputs that would take more than `MOST` bytes in
all, a segmenter's for one, are computed again each time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from gpusq_onnx.calibration.store import BatchStore
from gpusq_onnx.runtime.ort import Feed, Infer, Session, TensorInfo

MOST = 2 << 30  # bytes on disk


class Replay:
    """A session for `runtime.compare`, whose batches are the same in the same order each time that it is opened.

    Args:
        session: what runs.
        folder: an empty scratch folder.
    """

    max_batch: int | None = None

    def __init__(self, session: Session, folder: Path) -> None:
        self._session, self._store = session, BatchStore(folder)
        self._kept, self._bytes = 0, 0
        self.name = session.name

    @property
    def fixed_batch(self) -> int | None:
        """The session's."""
        return self._session.fixed_batch

    def inputs(self) -> list[TensorInfo]:
        """The session's."""
        return self._session.inputs()

    def outputs(self) -> list[TensorInfo]:
        """The session's."""
        return self._session.outputs()

    @contextmanager
    def opened(self) -> Iterator[Infer]:
        """A function that gives the outputs of the next batch while the block lasts."""
        number = -1
        with self._session.opened() as run:

            def infer(feed: Feed) -> Mapping[str, NDArray[Any]]:
                nonlocal number
                number += 1
                if number < self._kept:
                    return self._store.read_all(number)
                found = run(feed)
                size = sum(values.nbytes for values in found.values())
                if number == self._kept and self._bytes + size <= MOST:
                    self._store.write(number, found)
                    self._kept, self._bytes = number + 1, self._bytes + size
                return found

            yield infer
