"""Around whatever looks into a file that nobody vouches for: libraries raise what its bytes make them raise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gpusq_onnx.errors import GpusqError


@contextmanager
def reading(file: Path, refuse: Callable[[Path, Exception], GpusqError]) -> Iterator[None]:
    """Turn what goes wrong in the block into what `refuse` makes of it; our own errors and lack of memory stay."""
    try:
        yield
    except (GpusqError, MemoryError):
        raise
    except Exception as error:
        raise refuse(file, error) from error
