"""How long work tells that it is under way: a callback protocol, and the one that says nothing.

Every function that can take more than two seconds accepts `progress: Progress = NullProgress()` and reports one stage
after another: `start(label, total)`, `advance(n)` as units are done, `note(text)` for what is worth knowing meanwhile,
such as a loss, `finish()`. Stages do not nest: a new `start` ends the stage before it. Nothing here draws; the command
line does (rich, on stderr, only on a terminal).
"""

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """What long work calls. Implementations must be cheap: `advance` may be called once per weight or per batch."""

    def start(self, label: str, total: int | None = None) -> None:
        """Begin a stage: `label` in a few words, `total` in units of `advance`, None when it is not known."""

    def advance(self, n: int = 1) -> None:
        """`n` more units of the current stage are done."""

    def note(self, text: str) -> None:
        """Show a few words beside the current stage, in place of those before."""

    def finish(self) -> None:
        """End the current stage. Harmless when there is none."""


class NullProgress:
    """Says nothing: the default of the library, of CI and of pipes."""

    def start(self, label: str, total: int | None = None) -> None:
        return None

    def advance(self, n: int = 1) -> None:
        return None

    def note(self, text: str) -> None:
        return None

    def finish(self) -> None:
        return None


class Labelled:
    """A part of longer work: every label begins with what is known of the whole, `step 2 of 4, qdq-int8: `."""

    def __init__(self, progress: Progress, prefix: str) -> None:
        self._progress, self._prefix = progress, prefix

    def start(self, label: str, total: int | None = None) -> None:
        self._progress.start(f"{self._prefix}{label}", total)

    def advance(self, n: int = 1) -> None:
        self._progress.advance(n)

    def note(self, text: str) -> None:
        self._progress.note(text)

    def finish(self) -> None:
        self._progress.finish()


def track(progress: Progress, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Iterate over `items` as one stage; an item counts as done when the next one is asked for."""
    progress.start(label, total)
    try:
        for item in items:
            yield item
            progress.advance()
    finally:
        progress.finish()
