"""Time and peak memory of whole processes, as the kernel counts them.

A process is started, waited for with `os.wait4`, and its own resource usage read: `ru_maxrss` is the peak of resident
memory. Wall time includes start, imports and exit. Limit: Linux counts `ru_maxrss` from before `exec`, so the parent
must stay small; nothing here imports numpy.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Usage:
    """One process: wall seconds, CPU seconds of all its threads, peak resident bytes, what it printed."""

    seconds: float
    cpu: float
    peak: int
    output: str


def python(*arguments: str) -> Usage:
    """Run this interpreter with `arguments`. Raises RuntimeError with what it said when it fails."""
    with tempfile.TemporaryFile("w+") as output:
        began = time.perf_counter()
        process = subprocess.Popen([sys.executable, *arguments], stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        said = output.read()
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {process.returncode}:\n{said}")
    return Usage(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, said)


def gpusq(*arguments: str) -> Usage:
    """Run one gpusq-onnx command line."""
    return python("-m", "gpusq_onnx", *arguments)


def seconds_of(runs: Sequence[Usage]) -> float:
    """Median wall time."""
    return median(run.seconds for run in runs)


def peak_of(runs: Sequence[Usage]) -> float:
    """Median peak memory in bytes."""
    return median(run.peak for run in runs)
