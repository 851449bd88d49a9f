"""The clock of a training run: what the progress line says, images a second, and when a checkpoint is due.

Nothing of it reaches the result: the only readings of the clock are here.
"""

from __future__ import annotations

import time

from gpusq_onnx.progress import Progress


class ProgressMeter:
    """Tells `progress` how a run called `label` goes; checkpoints are `interval` seconds apart, an image is `work`."""

    def __init__(self, progress: Progress, label: str, interval: float, work: float = 0.0) -> None:
        self._progress, self._label, self._interval, self._work = progress, label, interval, work
        self._step = self._rows = 0
        self._told = self._saved = time.perf_counter()

    def begin(self, start: int, total: int, rows: int) -> None:
        """Steps `start` to `total` of `rows` images each are about to be done."""
        if start:
            self._progress.say(f"resuming from training step {start} of {total}, which an earlier run had reached")
        self._progress.start(self._label, total - start, self._work * (total - start) * rows)
        self._step, self._rows = start, rows
        self._told = self._saved = time.perf_counter()

    def tell(self, step: int, loss: float) -> float:
        """`step` steps are done, the last ones at a mean `loss`; returns images a second since the last time."""
        now = time.perf_counter()
        speed = (step - self._step) * self._rows / max(now - self._told, 1e-9)
        self._progress.advance(step - self._step)
        self._progress.note(f"loss {loss:.4g}, {speed:.0f} images/s")
        self._step, self._told = step, now
        return round(speed, 1)

    def save_now(self, done: bool) -> bool:
        """Whether a checkpoint is due: the last one is old, or all is `done`."""
        now = time.perf_counter()
        if not done and now - self._saved < self._interval:
            return False
        self._saved = now
        return True

    def end(self) -> None:
        """The run is over."""
        self._progress.finish()
