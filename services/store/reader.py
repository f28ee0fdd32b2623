"""Reads one key's projection as new as the reader wants it: waits for the materializer, and falls back to the state.

A wait ends by the notification of whichever replica projects the partition; see docs/read-your-writes.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter

from services.store.domain import StateNotFound
from services.store.projection import Reading, is_served, may_come
from services.store.repository.projection import ProjectionRepository


class ProjectionReader:
    """Readers of projections that wait. `reread_seconds`: how often one looks that hears nothing."""

    def __init__(self, projections: ProjectionRepository, reread_seconds: float, registry: CollectorRegistry) -> None:
        self._projections = projections
        self._reread_seconds = reread_seconds
        self._is_ending = False
        self._waiting: dict[int, asyncio.Future[None]] = {}
        """For each partition that somebody waits for, what its next projecting ends."""
        self._fallbacks = Counter(
            "projection_fallback_count",
            "Reads answered from the canonical state, because the projection was not there.",
            registry=registry,
        )

    def projected(self, partitions: Iterable[int] | None) -> None:
        """These partitions were projected further, here or elsewhere; None means any."""
        for partition in list(self._waiting) if partitions is None else partitions:
            waiting = self._waiting.pop(partition, None)
            if waiting is not None and not waiting.done():
                waiting.set_result(None)

    def end_waits(self) -> None:
        """Answers who waits, and who comes, with what there is: the node stops."""
        self._is_ending = True
        self.projected(None)

    async def read(self, key: str, min_version: int, max_wait: float) -> tuple[Reading, bool]:
        """What is shown of the key at `min_version` or later, and whether it is from the projection and not the state.

        Waits up to `max_wait` seconds for the projection. The state may be older than `min_version`, where the key has not come to
        it. Raises StateNotFound.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + max_wait
        partition = await self._projections.partition_of(key)
        while True:
            # Before the look: what is projected after it must end the wait.
            waiting = self._next(partition)
            reading = await self._projections.find(key)
            if is_served(reading, min_version):
                return reading, True
            left = end - loop.time()
            if left <= 0 or self._is_ending or not may_come(reading, min_version):
                break
            await asyncio.wait([waiting], timeout=min(left, self._reread_seconds))
        reading = await self._projections.find_canonical(key)
        if reading.projection is None:
            raise StateNotFound(metadata={"key": key})
        self._fallbacks.inc()
        return reading, False

    def _next(self, partition: int) -> asyncio.Future[None]:
        """What the partition's next projecting ends; all who wait for it share it."""
        waiting = self._waiting.get(partition)
        if waiting is None:
            waiting = self._waiting[partition] = asyncio.get_running_loop().create_future()
        return waiting
