"""Reading files in threads: inflating and checksums leave the interpreter free."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_BATCH = 512
Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    work: Callable[[Item], Result], items: Sequence[Item], workers: int | None = None
) -> Iterator[Result]:
    """``work`` of every item, in the order of the items; a batch of results is in memory.

    Args:
        workers: threads; by default as many as there are processors, 8 at most.
    """
    workers = workers or min(8, os.cpu_count() or 1)
    if workers == 1:
        yield from map(work, items)
        return
    pool = ThreadPoolExecutor(workers)
    try:
        for first in range(0, len(items), _BATCH):
            yield from pool.map(work, items[first : first + _BATCH])
    finally:
        pool.shutdown(cancel_futures=True)
