"""The process in which onnxruntime meets models, kept from one test to the next: its start is most of a small run.

A process is lent again only to who would have started an equal one: the same process, environment and import path. One
that died, or that was left in the middle of a request, is not lent again. What a fork inherits is its parent's: it is
neither lent nor ended there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from gpusq_onnx.runtime.child import Worker

_OF_PYTEST = "PYTEST_CURRENT_TEST"


class Keeper:
    """Lends workers, and ends them with the session. Its `lend` takes the place of `Worker`."""

    def __init__(self) -> None:
        self._idle: list[tuple[object, Worker]] = []
        self._of_parents: list[list[tuple[object, Worker]]] = []  # kept, so that nothing ends with them
        self._process = os.getpid()

    def lend(self, module: str) -> Lent:
        """A worker of `module` that answers one request after the other, a new one if none is idle."""
        if self._process != os.getpid():
            self._of_parents.append(self._idle)
            self._idle, self._process = [], os.getpid()
        environment = sorted((key, value) for key, value in os.environ.items() if key != _OF_PYTEST)
        kind = (module, environment, list(sys.path))
        found = next((entry for entry in self._idle if entry[0] == kind), None)
        if found is None:
            return Lent(self, kind, Worker(module))
        self._idle.remove(found)
        return Lent(self, *found)

    def take_back(self, kind: object, worker: Worker) -> None:
        """Keep a worker for the next one; of many kinds, the latest."""
        self._idle.append((kind, worker))
        if len(self._idle) > 2:
            _end(self._idle.pop(0)[1])

    def end(self) -> None:
        """End all that are idle."""
        while self._idle:
            _end(self._idle.pop()[1])


class Lent:
    """A worker on loan, as `runtime.child.Worker` is used."""

    def __init__(self, keeper: Keeper, kind: object, worker: Worker) -> None:
        self._keeper, self._kind, self._worker, self._sound = keeper, kind, worker, True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._sound:
            self._keeper.take_back(self._kind, self._worker)
        else:
            _end(self._worker)

    def send(self, request: Mapping[str, Any], scratch: Path) -> None:
        """See `runtime.child.Worker.send`."""
        self._sound = False
        self._worker.send(request, scratch)

    def receive(self, scratch: Path) -> tuple[dict[str, Any], str | None]:
        """See `runtime.child.Worker.receive`."""
        answer, end = self._worker.receive(scratch)
        self._sound = end is None
        return answer, end


def _end(worker: Worker) -> None:
    worker.__exit__(None, None, None)
