"""The same numpy work on many weights, in threads: numpy computes outside the interpreter's lock.

Two threads, since each holds a weight and its temporaries, and memory is counted; results come in the order of the
items, so the outcome does not depend on timing. Limit: work in small pieces gains nothing, its threads wait for the
lock (blocks of `quant.clipping`).
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

WORKERS = 2

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`map`, some items ahead; an error is raised at its item's place."""
    with ThreadPoolExecutor(WORKERS) as pool:
        yield from pool.map(work, items)


def run_all(work: Callable[[Item], None], items: Iterable[Item]) -> None:
    """Run `work` on every item; the items must not share what they change."""
    for _ in in_order(work, items):
        pass
