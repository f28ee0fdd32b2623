"""Many pieces of work at once, a bounded number of them, with their results in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


async def in_order(items: Iterable[T], work: Callable[[T], Awaitable[R]], in_flight: int) -> AsyncGenerator[R, None]:
    """`work` of each item, in the items' order, `in_flight` of them running at once.

    The first failure ends all and is raised. Work still running when the caller leaves (see contextlib.aclosing) is cancelled and
    waited for.
    """

    async def run(item: T) -> R:
        return await work(item)

    running: deque[asyncio.Task[R]] = deque()
    try:
        for item in items:
            running.append(asyncio.create_task(run(item)))
            if len(running) == in_flight:
                yield await running.popleft()
        while running:
            yield await running.popleft()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def pack(items: Iterable[T], size: Callable[[T], int], max_count: int, max_size: int) -> Iterator[list[T]]:
    """The items in their order, in lists of at most `max_count` with at most `max_size` in all; one that is larger stands alone."""
    batch: list[T] = []
    total = 0
    for item in items:
        if batch and (len(batch) == max_count or total + size(item) > max_size):
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += size(item)
    if batch:
        yield batch
