"""What a timing was made on: the GPU with its clocks under load, the CPU, the versions of what ran.

The GPU is asked through `nvidia-smi --query-gpu`, which comes with the driver: no library has to be there. Nothing is
set: clocks, power limits and modes stay as they are found.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

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
UNKNOWN = "not told"


@dataclass(frozen=True)
class Gpu:
    """One GPU at one moment, in nvidia-smi's words and units, by query field; "not told" where it has none."""

    facts: Mapping[str, str]

    @property
    def name(self) -> str:
        """The product, e.g. NVIDIA H100 80GB HBM3."""
        return self.facts["name"]

    @property
    def clocks(self) -> str:
        """SM and memory clock, for a heading."""
        told = {name: self.facts.get(name, UNKNOWN) for name in ("clocks.sm", "clocks.max.sm", "clocks.mem")}
        return f"SM {told['clocks.sm']} of {told['clocks.max.sm']}, memory {told['clocks.mem']}"


def read_gpu(index: int = 0) -> Gpu | None:
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


def parse_gpu(text: str) -> Gpu | None:
    """The first line of nvidia-smi's CSV without header; None where it is something else (`No devices were found`)."""
    cells = [cell.strip() for cell in (text.splitlines() or [""])[0].split(", ")]
    if len(cells) != len(FIELDS):
        return None
    told = (UNKNOWN if cell.startswith("[") or not cell else cell for cell in cells)
    return Gpu(dict(zip(FIELDS, told, strict=True)))


def cpu_name() -> str:
    """The processor's name and the number of CPUs that this process may use."""
    name = platform.processor() or platform.machine()
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        lines = listing.read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {usable_cpus()} CPUs"


def usable_cpus() -> int:
    """The CPUs that this process may use, which in a container are fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions(*names: str) -> dict[str, str]:
    """The installed versions of these distributions; those that are not there are left out."""
    return {name: found[0].version for name in names if (found := list(distributions(name=name)))}
