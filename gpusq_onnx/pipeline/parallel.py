"""numpy work in threads of ours: numpy computes outside the interpreter's lock.

What comes out depends neither on the number of threads nor on timing: items are fixed by the work and not by the
machine, results come in the items' order, and `one_blas_thread` keeps BLAS from dividing one product, whose parts it
would add in another order for each number of threads.

Limit: work in small pieces gains nothing, its threads wait for the lock (blocks of `quant.clipping`).
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
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
    """The same for the parts of one job, which hold little of their own: as many threads as CPUs."""
    for _ in in_order(work, items, usable_cpus()):
        pass


def one_blas_thread() -> AbstractContextManager[Any]:
    """While open, numpy's BLAS computes each product in the calling thread."""
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[Any] = threadpool_limits(1, user_api="blas")
    return limits
