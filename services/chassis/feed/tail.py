"""The end of a log in memory."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from datetime import datetime
from typing import Generic

from services.chassis.feed.log import Position, R

_ENTRY_BYTES = 300
"""A dictionary's entry, with its key and an empty list."""


class Chunk(Generic[R]):
    """What one read added to the log's end."""

    __slots__ = ("begin", "encoded", "end", "rows", "size_bytes")

    def __init__(self, rows: Sequence[R], begin: Position, end: Position) -> None:
        self.rows = rows
        self.begin = begin
        self.end = end
        self.size_bytes = sum(row.size_bytes for row in rows)
        self.encoded: dict[bytes, list[bytes]] = {}
        """Its responses by filters, where several watchers have them."""


class Tail(Generic[R]):
    """The end of the log in memory, chunk after chunk, each with its number."""

    def __init__(self, end: Position, time: datetime, limit: int) -> None:
        self.end = end
        self.time = time
        """The moment up to which nothing is missing."""
        self._limit = limit
        self._chunks: OrderedDict[int, Chunk[R]] = OrderedDict()
        self._size = 0
        self.next_number = 0
        self.news = asyncio.Event()
        """Set when there is more; another one waits then."""

    def add(self, rows: Sequence[R]) -> None:
        """Takes what follows the end, and wakes who waits."""
        begin, self.end = self.end, {**self.end, **{row.partition: row.offset + 1 for row in rows}}
        chunk = Chunk(rows, begin, self.end)
        self._chunks[self.next_number] = chunk
        self.next_number += 1
        self._grow(chunk.size_bytes)
        news, self.news = self.news, asyncio.Event()
        news.set()

    def find(self, number: int) -> Chunk[R] | None:
        """The chunk of this number; None where it is gone."""
        return self._chunks.get(number)

    def keep(self, chunk: Chunk[R], key: bytes, responses: list[bytes]) -> None:
        """Keeps the responses of a chunk for watchers of the same filters."""
        size = _ENTRY_BYTES + sum(map(len, responses))
        chunk.encoded[key] = responses
        chunk.size_bytes += size
        self._grow(size)

    def _grow(self, size: int) -> None:
        self._size += size
        # The newest stays whatever its size: someone has yet to be shown it.
        while self._size > self._limit and len(self._chunks) > 1:
            self._size -= self._chunks.popitem(last=False)[1].size_bytes
