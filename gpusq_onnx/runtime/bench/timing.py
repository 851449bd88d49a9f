"""Timing several runners side by side in one run: interleaved rounds, medians, spread, and paired ratios.

    warm-up    every runner runs for `warm` seconds at least; then the number of executions in a sample is chosen so
               that one sample lasts `least` seconds
    round r    every runner gives one sample (seconds an execution); the order is rotated by r, so that nobody always
               runs after the same neighbour, and what the machine does meanwhile (clocks, other work) hits all alike
    result     the median over rounds, the quartiles, and spread = (q3 - q1) / median
    ratio      of a to b: the median over rounds of sample_b / sample_a, both of the same round: a's speed in units of b

A runner measures itself: on a GPU with events around the executions, on a CPU with the wall clock, in both cases with
the inputs in place and the outputs left there, so that no transfer is counted. Limits: executions of one sample follow
each other without a pause, so a latency is that of a busy device.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Protocol

from gpusq_onnx.progress import NullProgress, Progress

MOST = 10_000  # executions in one sample


class Runner(Protocol):
    """Something that can be executed again and again on inputs that are in place."""

    def measure(self, times: int) -> float:
        """Seconds that `times` executions took, one after the other, until the last had ended."""

    def close(self) -> None:
        """Free what it holds; it is not used again."""


@dataclass(frozen=True)
class Rounds:
    """How long, and how often.

    Attributes:
        rounds: of all models, interleaved.
        warm: seconds of warming up.
        least: seconds that a sample takes at least.
    """

    rounds: int = 20
    warm: float = 0.5
    least: float = 0.02


@dataclass(frozen=True)
class Timing:
    """Seconds an execution: every sample in the order of rounds, and executions in each sample."""

    samples: tuple[float, ...]
    executions: int

    @property
    def median(self) -> float:
        """Seconds."""
        return median(self.samples)

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third, seconds; both the sample where there is one."""
        if len(self.samples) == 1:
            return self.samples[0], self.samples[0]
        first, _, third = quantiles(self.samples, n=4, method="inclusive")
        return first, third

    @property
    def spread(self) -> float:
        """(q3 - q1) / median."""
        first, third = self.quartiles
        return (third - first) / self.median

    def faster_than(self, other: Timing) -> float:
        """How many times as fast as `other`, timed in the same rounds: the median of the rounds' own ratios."""
        return median(theirs / ours for ours, theirs in zip(self.samples, other.samples, strict=True))


class WallClock:
    """A function on the CPU, timed by the wall clock."""

    def __init__(self, run: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> None:
        self._run, self._clock = run, clock

    def measure(self, times: int) -> float:
        """Seconds that `times` calls took."""
        began = self._clock()
        for _ in range(times):
            self._run()
        return self._clock() - began

    def close(self) -> None:
        """Nothing to free."""


def time_side_by_side(
    runners: Mapping[str, Runner],
    settings: Rounds = Rounds(),
    progress: Progress = NullProgress(),  # noqa: B008 - it has no state
) -> dict[str, Timing]:
    """Time every runner in the same rounds; the result has the keys of `runners`."""
    progress.start("timing", len(runners) * (settings.rounds + 1))
    counts = {}
    for name, runner in runners.items():
        counts[name] = _warm_up(runner, settings)
        progress.advance()
    samples: dict[str, list[float]] = {name: [] for name in runners}
    for turn in range(settings.rounds):
        for name in rotated(list(runners), turn):
            samples[name].append(runners[name].measure(counts[name]) / counts[name])
            progress.advance()
    progress.finish()
    return {name: Timing(tuple(found), counts[name]) for name, found in samples.items()}


def rotated(names: Sequence[str], turn: int) -> list[str]:
    """The order of round `turn`: rotated by it, and backwards in every other one, so that neighbours change too."""
    start = turn % len(names)
    order = [*names[start:], *names[:start]]
    return order[::-1] if turn % 2 else order


def _warm_up(runner: Runner, settings: Rounds) -> int:
    """Run until `warm` seconds have gone; the number of executions that last `least` seconds."""
    spent, times, last = 0.0, 1, math.inf
    while True:
        took = runner.measure(times)
        spent += took
        last = max(took / times, 1e-9)
        if spent >= settings.warm:
            return max(1, min(MOST, math.ceil(settings.least / last)))
        times = max(1, min(MOST, 2 * times, math.ceil((settings.warm - spent) / last)))
