"""How long work tells that it is under way: a callback protocol, and the one that says nothing.

Every function that can take more than two seconds accepts `progress: Progress = NullProgress()` and reports one stage
after another: `start(label, total, work)`, `advance(n)` as units are done, `note(text)` for what is worth knowing
meanwhile, such as a loss, `finish()`. Stages do not nest: a new `start` ends the stage before it. Nothing here draws;
the command line does (rich, on stderr, only on a terminal).

`work` is what a stage costs, in runs of one image through the model, about: `pipeline.schedule` makes of it how long
all will take.
"""

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """What long work calls. Implementations must be cheap: `advance` may be called once per weight or per batch."""

    def start(self, label: str, total: int | None = None, work: float = 0.0) -> None:
        """Begin a stage: `label` in a few words, `total` in units of `advance`, None when it is not known."""

    def advance(self, n: int = 1) -> None:
        """`n` more units of the current stage are done."""

    def note(self, text: str) -> None:
        """Show a few words beside the current stage, in place of those before."""

    def say(self, text: str) -> None:
        """A sentence that stays: what will be done, what was found and is gone on from."""

    def remain(self, seconds: float | None) -> None:
        """About so long will all take that is left, this stage and those after it; None: nobody knows."""

    def finish(self) -> None:
        """End the current stage. Harmless when there is none."""


class NullProgress:
    """Says nothing: the default of the library, of CI and of pipes."""

    def start(self, label: str, total: int | None = None, work: float = 0.0) -> None:
        return None

    def advance(self, n: int = 1) -> None:
        return None

    def note(self, text: str) -> None:
        return None

    def say(self, text: str) -> None:
        return None

    def remain(self, seconds: float | None) -> None:
        return None

    def finish(self) -> None:
        return None


def track(progress: Progress, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Iterate over `items` as one stage; an item counts as done when the next one is asked for."""
    progress.start(label, total)
    try:
        for item in items:
            yield item
            progress.advance()
    finally:
        progress.finish()
