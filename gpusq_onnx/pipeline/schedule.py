"""How long a pipeline takes, said before it starts and while it runs: an estimate, which what is measured corrects.

    work    of a pass and of its stages, in runs of one image through the model: so many take as long
    rate    seconds a run: of the one in which the model is tried first; then of what is done, too
    left    rate x work of all that is to come; of the stage under way, by its own rate

A rate is (prior rate x 5 % of the work + seconds spent) / (5 % of the work + work done), so that the first batch of a
stage, slow as it is, does not make hours of minutes.

The costs below were measured on a ViT-Tiny and a DeiT-Base on two CPU cores (docs/benchmarks.md, "How long it takes");
they are off by half on other models and machines. Training on a GPU has nothing to do with a run on the CPU: how long
that takes is not known before it runs (`Pass.work`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from gpusq_onnx.progress import Progress
from gpusq_onnx.text import duration

CALIBRATING = 1.6  # runs of one image that an image takes whose activations are watched
SECOND_ORDER = 3.0  # that takes part in the second-order choice of all weights
BESIDE = 3.5  # and that many more where the dense model is run beside and compared with
SLOPES = 5.0  # and that many more where its rows are weighted by gradients, in torch
LOOKING = 3.0  # that a student and its teacher are compared on, in torch
TRAINING = 5.0  # that a student learns from, whole
WORTH_SAYING = 10.0  # seconds
_PRIOR = 0.05


class Schedule:
    """The progress of a pipeline: what passes report goes on to `progress`, with the step and the time for all.

    Args:
        steps: the passes' names, and the work of each; None: it cannot be known.
        rate: seconds that one run takes; None: no run was timed.
        numbered: name the step by its number, too.
    """

    def __init__(
        self,
        progress: Progress,
        steps: Sequence[tuple[str, float | None]],
        rate: float | None,
        clock: Callable[[], float] = time.perf_counter,
        *,
        numbered: bool = True,
    ) -> None:
        self._progress, self._steps, self._rate, self._clock = progress, steps, rate, clock
        self._numbered = numbered
        self._index = 0
        self._began = clock()
        self._worked = self._spent = 0.0  # of all stages that are done
        self._of_step = 0.0  # the work of this step's stages that are done
        self._work = self._done = self._total = 0.0  # of this stage

    @property
    def expected(self) -> float | None:
        """Seconds that all steps take, about; None where one of them is not known."""
        works = [work for _, work in self._steps]
        known = [work for work in works if work is not None]
        return None if self._rate is None or len(known) < len(works) else self._rate * sum(known)

    def announce(self, images: int, offered: int, option: str = "--samples N") -> None:
        """Say how long it will take, where that is worth it; of `offered` images so many are used, by `option` more."""
        expected = self.expected
        if expected is not None and expected >= WORTH_SAYING:
            names = ", ".join(name for name, _ in self._steps)
            basis = f"an estimate, from one run of one image ({self._rate:.2g} s)"
            used = f"{images} images" if images >= offered else f"{images} of {offered} images (more: {option})"
            self._progress.say(f"{names}: about {duration(expected)} for {used}; {basis}")

    def step(self, index: int) -> None:
        """What is reported from now on belongs to the pass at `index`."""
        self._index, self._of_step = index, 0.0

    def start(self, label: str, total: int | None = None, work: float = 0.0) -> None:
        self._end()
        self._work, self._done, self._total, self._began = work, 0.0, total or 0, self._clock()
        self._progress.start(f"{self._name}: {label}", total)
        self._progress.remain(self._left())

    def advance(self, n: int = 1) -> None:
        self._done += n
        self._progress.remain(self._left())
        self._progress.advance(n)

    def note(self, text: str) -> None:
        self._progress.note(text)

    def say(self, text: str) -> None:
        self._progress.say(f"{self._name}: {text}")

    def remain(self, seconds: float | None) -> None:
        self._progress.remain(seconds)

    def finish(self) -> None:
        self._end()
        self._progress.finish()

    @property
    def _name(self) -> str:
        name = self._steps[self._index][0]
        return f"step {self._index + 1} of {len(self._steps)}, {name}" if self._numbered else name

    @property
    def _finished(self) -> float:
        """The work of this stage that is done."""
        return self._work * min(1.0, self._done / self._total) if self._total else 0.0

    def _end(self) -> None:
        """Count the stage under way as done, as far as it went."""
        if self._work:
            self._worked += self._finished
            self._of_step += self._work
            self._spent += self._clock() - self._began
        self._work = 0.0

    def _left(self) -> float | None:
        coming = [work for _, work in self._steps[self._index + 1 :]]
        whole = self._steps[self._index][1]
        works = [work for work in (whole, *coming) if work is not None]
        if self._rate is None or len(works) < 1 + len(coming):
            return None
        now, prior = self._clock() - self._began, _PRIOR * self._work
        rate = self._rate
        if whole := sum(work for _, work in self._steps if work is not None):
            spent = self._spent + (now if self._work else 0.0)
            rate = (rate * _PRIOR * whole + spent) / (_PRIOR * whole + self._worked + self._finished)
        own = (rate * prior + now) / (prior + self._finished) if self._finished else rate
        later = sum(works) - self._of_step - self._work
        return own * (self._work - self._finished) + rate * max(0.0, later)
