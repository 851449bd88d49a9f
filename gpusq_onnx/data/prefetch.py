"""Work done ahead: the next batches are made in background threads while the caller uses this one.

Order is kept. Pillow, zlib and NumPy let other threads run while they decode, so threads do. Memory is the batch in use
and `workers` more; whoever leaves early waits for the batches that are being made, and no thread outlives them.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from gpusq_onnx.data.source import Batch, Box, Source

MOST = 8  # threads; past that Python's own part of the work is what takes the time

T = TypeVar("T")
R = TypeVar("R")


def ahead(make: Callable[[T], R], items: Iterable[T], workers: int = 1) -> Iterator[R]:
    """`make(item)` for each item, in order, up to `workers` of them ahead of the caller."""
    with ThreadPoolExecutor(max_workers=workers) as pool:
        pending: deque[Future[R]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(make, item))
                if len(pending) > workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def stream(
    source: Source,
    requests: Iterable[tuple[Sequence[int], Sequence[Box] | None]],
    workers: int | None = None,
) -> Iterator[Batch]:
    """`source.read(*request)` for each request, in order, read ahead.

    Args:
        workers: threads that decode; by default one less than there are processors, at least 1 and at most `MOST`.
    """
    threads = workers or max(1, min(MOST, (os.cpu_count() or 1) - 1))
    return ahead(lambda request: source.read(*request), requests, threads)
