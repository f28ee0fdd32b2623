"""Long work in the event loop, in pieces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

T = TypeVar("T")

_TURN_ITEMS = 25
"""Items of a batch between two turns of the event loop: a millisecond, in which PostgreSQL's answers and other calls wait."""


async def in_turns(items: Iterable[T]) -> AsyncIterator[T]:
    """The items; other tasks get their turn in between."""
    for position, item in enumerate(items, start=1):
        if position % _TURN_ITEMS == 0:
            await asyncio.sleep(0)
        yield item
