"""numpy work in threads of ours: numpy computes outside the interpreter's lock.

What comes out depends neither on the number of threads nor on timing: items are fixed by the work and not by the
machine, results come in the items' order, and `one_blas_thread` keeps BLAS from dividing one product, whose parts it
would add in another order for each number of threads.

Limit: work in small pieces gains nothing, its threads wait for the lock (blocks of `quant.clipping`).
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, TypeVar

from gpusq_onnx.runtime.machine import usable_cpus

WORKERS = 2  # where each holds a weight and its temporaries: memory is counted

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(work: Callable[[Item], Result], items: Iterable[Item], workers: int = WORKERS) -> Iterator[Result]:
    """`map`, some items ahead; an error is raised at its item's place."""
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(work, items)


def run_all(work: Callable[[Item], None], items: Iterable[Item]) -> None:
    """Run `work` on every item; the items must not share what they change."""
    for _ in in_order(work, items):
        pass


def share(work: Callable[[Item], None], items: Iterable[Item]) -> None:
    """The same for the parts of one job, which hold little of their own: as many threads as CPUs.

    Jobs are small and many, so the threads stay; a part must not `share` itself, it would wait for its own thread.
    """
    for _ in _staying(usable_cpus()).map(work, items):
        pass


@cache
def _staying(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_staying.cache_clear)  # threads do not come along


def one_blas_thread() -> AbstractContextManager[Any]:
    """While open, numpy's BLAS computes each product in the calling thread."""
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[Any] = threadpool_limits(1, user_api="blas")
    return limits
