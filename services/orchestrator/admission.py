"""How much runs at once: a bound on the workflows, and one on the bytes of content that they hold."""

from __future__ import annotations

import asyncio


class Admission:
    """Lets runs in while there is room. A run larger than all the room there is comes in alone."""

    def __init__(self, max_count: int, max_bytes: int) -> None:
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._count = 0
        self._bytes = 0
        self._queued = 0
        self._freed = asyncio.Event()

    def try_enter(self, size: int) -> bool:
        """Lets a run of `size` bytes in if there is room and nobody waits for it."""
        if self._queued or not self._fits(size):
            return False
        self._enter(size)
        return True

    async def enter(self, size: int) -> None:
        """Lets a run of `size` bytes in as soon as there is room."""
        self._queued += 1
        try:
            while not self._fits(size):
                self._freed.clear()
                await self._freed.wait()
        finally:
            self._queued -= 1
        self._enter(size)

    def leave(self, size: int) -> None:
        """Gives the room of a run back."""
        self._count -= 1
        self._bytes -= size
        self._freed.set()

    def _fits(self, size: int) -> bool:
        return not self._count or (self._count < self._max_count and self._bytes + size <= self._max_bytes)

    def _enter(self, size: int) -> None:
        self._count += 1
        self._bytes += size
