"""What was read and is not acknowledged yet: it is sent again when a connection breaks, and its bound is what slows the reading."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import NamedTuple

from omninode.bridge.reducer.v1 import aggregation_pb2

BATCHES = 64
"""Enough to keep a node counting while the commits of what came before are on their way."""
BYTES = 32 * 1024 * 1024
"""Of lines, in all batches together."""


class Batch(NamedTuple):
    """Records that follow each other, as they are sent."""

    columns: aggregation_pb2.ItemColumns
    size: int
    """Of the lines, in bytes."""

    @property
    def record_count(self) -> int:
        return len(self.columns.event_times_us)

    @property
    def last(self) -> int:
        """The last record's offset."""
        return self.columns.first_offset + self.record_count - 1


class Backlog:
    """Batches in the order of their offsets: one task adds them, one takes them, one strikes them off."""

    def __init__(self) -> None:
        self._batches: deque[Batch] = deque()
        self._size = 0
        self._changed = asyncio.Condition()
        self._ended = False
        self.last = 0
        """The last offset that ever was in it."""

    @property
    def is_done(self) -> bool:
        """Whether it is empty and nothing more comes."""
        return self._ended and not self._batches

    async def add(self, batch: Batch) -> None:
        """Returns when there was room; one batch there always is room for."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._batches or self._has_room(batch))
            self._batches.append(batch)
            self._size += batch.size
            self.last = batch.last
            self._changed.notify_all()

    async def end(self) -> None:
        """No more come."""
        async with self._changed:
            self._ended = True
            self._changed.notify_all()

    async def following(self, offset: int) -> Batch | None:
        """The first batch that holds something behind `offset`, once there is one; None when none will come."""

        def found() -> Batch | None:
            return next((batch for batch in self._batches if batch.last > offset), None)

        async with self._changed:
            await self._changed.wait_for(lambda: found() or self._ended)
            return found()

    async def strike(self, offset: int) -> int:
        """Forgets the batches up to `offset`; how many records they held."""
        count = 0
        async with self._changed:
            while self._batches and self._batches[0].last <= offset:
                batch = self._batches.popleft()
                self._size -= batch.size
                count += batch.record_count
            self._changed.notify_all()
        return count

    def _has_room(self, batch: Batch) -> bool:
        return len(self._batches) < BATCHES and self._size + batch.size <= BYTES
