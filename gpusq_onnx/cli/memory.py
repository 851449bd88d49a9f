"""`--max-memory`: refuse early what needs more, and never take more, where the alternative is to be killed late.

What the libraries need is known, and what a model needs at least from its files; that is asked before anything is read.
The rest is kept by the system: past the limit (Linux: RLIMIT_DATA, the memory that a process may write to) nothing more
is given out, and the command ends with exit code 5, cleaned up. What is mapped from files does not count.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpusq_onnx.errors import EnvironmentLacking, UsageError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
# What the libraries take beyond numpy and a small model with them; below it OpenBLAS and onnxruntime end the process.
_LIBRARIES = 160 << 20
_TIMES = 1.2  # the bytes of the model's files that a pipeline holds at least: what it replaces, and what it compares


def require_room(limit: int | None, model: Path) -> None:
    """Refuse a pipeline on a model that needs more than `limit` bytes whatever it does; None: there is no limit.

    Raises:
        EnvironmentLacking: the model needs more.
    """
    if limit is None:
        return
    _require("the model", _base() + int(_TIMES * sum(part.stat().st_size for part in _files(model))), limit, model)


def parse(text: str) -> int:
    """Bytes.

    >>> parse("4G"), parse("500M")
    (4294967296, 524288000)
    """
    match = re.fullmatch(r"([0-9]{1,15})([KMG]?)i?B?", text.strip(), re.IGNORECASE | re.ASCII)
    if match is None or not int(match[1]):
        raise UsageError("--max-memory is no amount of memory", expected="500M, 4G", found=text)
    return int(match[1]) * _UNITS[match[2].upper()]


def _files(model: Path) -> list[Path]:
    """The model, and what lies beside it under its name: the custom of every exporter for external data."""
    beside = [model.with_name(model.name + suffix) for suffix in (".data", "_data")]
    return [part for part in (model, *beside) if part.is_file()]


def _base() -> int:
    """Bytes that a verb takes before it does anything: what is taken now, with numpy, and the other libraries."""
    import numpy  # noqa: F401 - OpenBLAS takes some for each thread, hence as much as the machine makes it

    status = Path("/proc/self/status")  # Linux; elsewhere the libraries are all that is known
    taken = re.search(r"^VmData:\s*([0-9]+) kB", status.read_text() if status.exists() else "", re.MULTILINE)
    return _LIBRARIES + (int(taken[1]) << 10 if taken else 0)


def _require(what: str, needed: int, limit: int, where: Path | None = None) -> None:
    if needed > limit:
        raise EnvironmentLacking(
            f"{what} needs more memory than --max-memory allows",
            where=None if where is None else str(where),
            expected=f"{needed >> 20} MiB at least",
            found=f"{limit >> 20} MiB",
            hint="allow more, or work on a machine that has it",
        )


@contextmanager
def at_most(limit: int | None) -> Iterator[None]:
    """Run the block, and each process that it starts, with no more than so many bytes; None: with all there is.

    Raises:
        EnvironmentLacking: the libraries alone need more.
    """
    if limit is None or sys.platform != "linux":
        yield
        return
    import resource

    _require("the program alone", _base(), limit)
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    allowed = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
