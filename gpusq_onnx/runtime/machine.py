"""What a timing was made on: the GPU with its clocks under load, the CPU, the versions of what ran; and its memory.

The GPU is asked through `nvidia-smi --query-gpu`, which comes with the driver: no library has to be there. Nothing of
it is set: clocks, power limits and modes stay as they are found.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

from gpusq_onnx.runtime.crew import launched_here

FIELDS = (
    "name",
    "driver_version",
    "memory.total",
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "power.draw",
    "power.limit",
    "temperature.gpu",
)
UNKNOWN = "not reported"

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_NEVER, _LARGEST = -1, 1 << 30


@dataclass(frozen=True)
class GpuState:
    """One GPU at one moment, in nvidia-smi's words and units, by query field; "not reported" where it has none."""

    facts: Mapping[str, str]

    @property
    def name(self) -> str:
        """The product, e.g. NVIDIA H100 80GB HBM3."""
        return self.facts["name"]

    @property
    def clocks(self) -> str:
        """SM and memory clock, for a heading."""
        reported = {name: self.facts.get(name, UNKNOWN) for name in ("clocks.sm", "clocks.max.sm", "clocks.mem")}
        return f"SM {reported['clocks.sm']} of {reported['clocks.max.sm']}, memory {reported['clocks.mem']}"


def read_gpu(index: int = 0) -> GpuState | None:
    """GPU `index` as it is now; None where there is no GPU or no driver that answers."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader", f"--id={index}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return parse_gpu(done.stdout)


def parse_gpu(text: str) -> GpuState | None:
    """The first line of nvidia-smi's CSV without header; None where it is something else (`No devices were found`)."""
    cells = [cell.strip() for cell in (text.splitlines() or [""])[0].split(", ")]
    if len(cells) != len(FIELDS):
        return None
    reported = (UNKNOWN if cell.startswith("[") or not cell else cell for cell in cells)
    return GpuState(dict(zip(FIELDS, reported, strict=True)))


def cpu_name() -> str:
    """The processor's name and the number of CPUs that this process may use."""
    name = platform.processor() or platform.machine()
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        lines = listing.read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {usable_cpus()} CPUs"


def usable_cpus() -> int:
    """The CPUs that this process may use, which in a container are fewer than there are.

    Of several processes that `torchrun` or `accelerate launch` started on this host, each has its share.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, count // launched_here())


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that this process may still take without swapping; 0 where the system does not say.

    In a container no more than its limit leaves, where file pages that nobody has used lately do not count: they go
    when memory is wanted. Source: proc(5), cgroups(7), v2. `root`: where proc and sys are.
    """
    try:
        free = _sizes(root / "proc/meminfo")["MemAvailable:"] << 10
    except (OSError, KeyError):
        return 0
    group = root / "sys/fs/cgroup"
    try:
        limit, used = ((group / f"memory.{name}").read_text(encoding="utf-8").strip() for name in ("max", "current"))
        idle = _sizes(group / "memory.stat").get("inactive_file", 0)
    except OSError:
        return free
    return free if limit == "max" else max(0, min(free, int(limit) - int(used) + idle))


def _sizes(path: Path) -> dict[str, int]:
    """The second word of each line by the first."""
    lines = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1}


def versions(*names: str) -> dict[str, str]:
    """The installed versions of these distributions; those that are not there are left out."""
    return {name: found[0].version for name in names if (found := list(distributions(name=name)))}


def return_freed_memory() -> None:
    """Have glibc give back to the system what was freed inside its heap; elsewhere: nothing.

    Its threshold for pieces of their own grows up to 32 MB as large ones are freed; what lies below it stays with the
    process where something above it is in use. Source: mallopt(3), malloc_trim(3).
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """While open, glibc keeps what is freed for the next allocation; at the end it gives it back. Elsewhere: nothing.

    A training step frees what the next one allocates. By default large pieces, and the top of the heap, go back to the
    system, which hands out fresh pages of zeros for them: page faults cost up to a tenth of a step on the CPU
    (`python -m tools.bench training`). Source: mallopt(3), malloc_trim(3). Limit: what mallopt sets stays set for the
    process; the end gives memory back, once.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
    libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST)
    try:
        yield
    finally:
        return_freed_memory()
