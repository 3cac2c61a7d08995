"""Pictures read ahead in threads, and those of equal size brought together."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

READERS = 2
"""Threads that read pictures ahead of the device."""
AHEAD = 4
"""Pictures read ahead."""
WAITING = 16
"""Pictures that may wait for others of their size."""


def read_ahead(read: Callable[[int], T], count: int) -> Iterator[T]:
    """`read(0)`, `read(1)`, ... in order, with up to `AHEAD` of them under way in threads."""
    pool = ThreadPoolExecutor(READERS)
    queue: deque[Future[T]] = deque(pool.submit(read, i) for i in range(min(AHEAD, count)))
    following = len(queue)
    try:
        while queue:
            item = queue.popleft().result()
            if following < count:
                queue.append(pool.submit(read, following))
                following += 1
            yield item
    finally:
        # Whoever ends early, say for a stop, does not wait for a disk that hangs.
        pool.shutdown(wait=False, cancel_futures=True)


def grouped(items: Iterable[T], key: Callable[[T], Hashable], rows: int) -> Iterator[list[T]]:
    """Groups of up to `rows` items of equal `key`; smaller ones at the end, and where more than
    `WAITING` items wait: then the group that has waited longest."""
    waiting: dict[Hashable, list[T]] = {}
    for item in items:
        group = waiting.setdefault(key(item), [])
        group.append(item)
        if len(group) == rows:
            yield waiting.pop(key(item))
        elif sum(map(len, waiting.values())) > max(WAITING, rows):
            yield waiting.pop(next(iter(waiting)))
    yield from waiting.values()
