"""Takes away what has outlived its retention, from the partitions that this replica holds.

How long what is kept is services/store/retention's, what a batch takes away repository/retention's. What belongs to no partition -
blobs, uploads, lease events, projections that no reader sees - goes with partition 0.

Its leases only spare replicas each other's work. It asks for no fencing: every batch looks again at what it takes, so a sweeper
that was paused and is not the owner any more takes away what the owner would.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import prometheus_client
from prometheus_client import CollectorRegistry

from services.chassis.errors import BridgeError
from services.store.repository.retention import RetentionRepository
from services.store.repository.retention.blob import BlobPlace, ChunkPlace
from services.store.retention import MAX_BATCH, RetentionKind, RetentionSettings

_LEASE_EVENTS = "lease_events"
_PROJECTIONS = "projections"
KINDS = (*(kind.name.lower() for kind in RetentionKind), _LEASE_EVENTS, _PROJECTIONS)
"""What the metric counts apart."""

_log = logging.getLogger(__name__)


class Sweeper:
    """Sweeps the partitions it is given, each soon after it was given and then at every interval, in small batches.

    A sweep that fails is logged, and what it left goes with the next one. `drop_dead_generations(limit)` deletes up to `limit`
    projections that no reader sees, and returns how many.
    """

    def __init__(
        self,
        retention: RetentionRepository,
        settings: RetentionSettings,
        registry: CollectorRegistry,
        drop_dead_generations: Callable[[int], Awaitable[int]] | None = None,
    ) -> None:
        self._retention = retention
        self._settings = settings
        self._drop_dead_generations = drop_dead_generations
        self._deleted = prometheus_client.Counter(
            "retention_deleted", "What has outlived its retention and was deleted.", ["kind"], registry=registry
        )
        for kind in KINDS:
            self._deleted.labels(kind)
        self._events_dropped = prometheus_client.Counter(
            "outbox_events_dropped", "Events that the outbox held to the end of their retention.", registry=registry
        )
        self._due: dict[int, float] = {}
        """When each partition that is held is swept next, by the loop's clock."""
        self._level: set[int] = set()
        """Whose rows below the floors were all looked at here."""
        self._blobs = BlobPlace()
        self._chunks = ChunkPlace()
        self._walked_from: float | None = None
        """When the walk of the blobs began, by the loop's clock."""
        self._woken = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to sweep what it is given."""
        self._running = asyncio.get_running_loop().create_task(self._run(), context=contextvars.Context())

    async def aclose(self) -> None:
        """Ends; a batch that is under way is undone."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])

    def acquire(self, partition: int, epoch: int) -> None:
        """Begins with a partition. The epoch is not asked for: see above."""
        # It is no secret when.
        self._due[partition] = _now() + random.uniform(0, self._settings.first_sweep_seconds)  # noqa: S311
        self._woken.set()

    def lose(self, partition: int) -> None:
        """Ends with a partition, after the batch that is under way."""
        self._due.pop(partition, None)
        self._level.discard(partition)

    async def sweep(self) -> Counter[str]:
        """Sweeps every partition that is held, once; what was deleted, by kind."""
        return await self._sweep(sorted(self._due))

    async def _run(self) -> None:
        while True:
            self._woken.clear()
            await self._sweep(sorted(partition for partition, due in self._due.items() if due <= _now()))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min(self._due.values(), default=None)):
                    await self._woken.wait()

    async def _sweep(self, partitions: list[int]) -> Counter[str]:
        deleted: Counter[str] = Counter()
        for partition in partitions:
            if partition in self._due:
                await self._guarded(self._sweep_partition(partition, deleted), deleted, {"partition": partition})
        # Last: blobs to which only finished keys referred go in the same sweep.
        if 0 in partitions and 0 in self._due:
            await self._guarded(self._sweep_blobs(deleted), deleted, {"what": "blobs"})
            await self._guarded(self._sweep_others(deleted), deleted, {"what": "lease events and projections"})
        for partition in self._due.keys() & set(partitions):
            self._due[partition] = _now() + self._settings.sweep_interval_hours * 3600
        return deleted

    async def _guarded(
        self, sweep: Coroutine[Any, Any, None], deleted: Counter[str], details: dict[str, object]
    ) -> None:
        before = deleted.copy()
        try:
            await sweep
        except BridgeError as error:
            _log.warning("not swept to the end: %s", error.message, extra={**details, "reason": error.reason_name})
        except Exception:
            _log.exception("not swept to the end", extra=details)
        finally:
            for kind, count in (deleted - before).items():
                self._deleted.labels(kind).inc(count)

    async def _sweep_partition(self, partition: int, deleted: Counter[str]) -> None:
        await self._sweep_log(partition, deleted)
        while partition in self._due:
            forgotten = await self._retention.keys.forget(partition, self._settings.dedup, self._settings.batch_size)
            _count(deleted, RetentionKind.DEDUP, forgotten.action_count)
            if forgotten.is_last:
                break
            await self._pause()
        while partition in self._due:
            finished = await self._retention.keys.finish(partition, self._settings.finished, self._settings.batch_size)
            _count(deleted, RetentionKind.DEDUP, finished.action_count)
            _count(deleted, RetentionKind.KEYS, finished.key_count)
            if not finished.key_count:
                break
            # Here and not in the walk of the blobs, which has passed them.
            _count(deleted, RetentionKind.BLOBS, await self._drop_blobs(finished.digests))
            await self._pause()

    async def _sweep_log(self, partition: int, deleted: Counter[str]) -> None:
        log, outbox = await self._retention.log.floors(partition, self._settings)
        if partition not in self._level:
            # A sweep that broke off has moved a floor and not cleared what is below: one batch at most.
            for first in {log.first, outbox.first}:
                await self._clear(partition, max(0, first - MAX_BATCH), first, deleted)
        self._level.discard(partition)
        while partition in self._due and (log.first < log.target or outbox.first < outbox.target):
            log_end = await self._step(partition, log.first, log.target)
            outbox_end = await self._step(partition, outbox.first, outbox.target)
            moved = await self._retention.log.advance(partition, log_end, outbox_end)
            if moved == (log.first, outbox.first):
                # A consumer was registered meanwhile.
                break
            log_end, outbox_end = moved
            _count(deleted, RetentionKind.COMMITS, log_end - log.first)
            # Where both floors move over the same rows, one look takes them.
            for begin, end in dict.fromkeys([(log.first, log_end), (outbox.first, outbox_end)]):
                await self._clear(partition, begin, end, deleted)
            log, outbox = log._replace(first=log_end), outbox._replace(first=outbox_end)
        if partition in self._due:
            self._level.add(partition)

    async def _step(self, partition: int, begin: int, end: int) -> int:
        return (
            await self._retention.log.step(partition, begin, end, self._settings.batch_size) if begin < end else begin
        )

    async def _clear(self, partition: int, begin: int, end: int, deleted: Counter[str]) -> None:
        for start in range(begin, end, self._settings.batch_size):
            stop = min(start + self._settings.batch_size, end)
            cleared = await self._retention.log.clear(partition, start, stop, self._settings.dedup)
            _count(deleted, RetentionKind.DEDUP, cleared.action_count)
            _count(deleted, RetentionKind.EVENTS, cleared.offset_count)
            self._events_dropped.inc(cleared.event_count)
            await self._pause()

    async def _drop_blobs(self, digests: Sequence[bytes]) -> int:
        count = 0
        for start in range(0, len(digests), self._settings.batch_size):
            batch = digests[start : start + self._settings.batch_size]
            count += await self._retention.blobs.drop(batch, self._settings.blob)
        return count

    async def _sweep_released(self, deleted: Counter[str]) -> None:
        digests = [b""]
        while 0 in self._due:
            digests = await self._retention.blobs.list_released(digests[-1], self._settings.batch_size)
            if not digests:
                break
            _count(deleted, RetentionKind.BLOBS, await self._retention.blobs.drop_released(digests))
            await self._pause()

    async def _sweep_blobs(self, deleted: Counter[str]) -> None:
        await self._sweep_released(deleted)
        # What is referred to is passed once and not looked at each time; anew now and then, for what a sweep that broke off left.
        if self._walked_from is None or _now() - self._walked_from >= self._settings.blob_hours * 3600:
            self._walked_from, self._blobs, self._chunks = _now(), BlobPlace(), ChunkPlace()
        size = self._settings.batch_size
        while 0 in self._due:
            digests, blobs = await self._retention.blobs.list_unused(self._settings.blob, self._blobs, size)
            if blobs == self._blobs:
                break
            _count(deleted, RetentionKind.BLOBS, await self._drop_blobs(digests))
            self._blobs = blobs
            await self._pause()
        while 0 in self._due:
            uploads, chunks = await self._retention.blobs.list_uploads(self._settings.blob, self._chunks, size)
            if chunks == self._chunks:
                break
            _count(deleted, RetentionKind.BLOBS, await self._retention.blobs.drop_uploads(uploads, self._settings.blob))
            self._chunks = chunks
            await self._pause()

    async def _sweep_others(self, deleted: Counter[str]) -> None:
        size = self._settings.batch_size
        while 0 in self._due:
            count = await self._retention.lease_events.drop(self._settings.commit_log, size)
            _count(deleted, _LEASE_EVENTS, count)
            if count < size:
                break
            await self._pause()
        while self._drop_dead_generations is not None and 0 in self._due:
            count = await self._drop_dead_generations(size)
            _count(deleted, _PROJECTIONS, count)
            if count < size:
                break
            await self._pause()

    async def _pause(self) -> None:
        await asyncio.sleep(self._settings.pause_seconds)


def _count(deleted: Counter[str], kind: RetentionKind | str, count: int) -> None:
    if count:
        deleted[kind.name.lower() if isinstance(kind, RetentionKind) else kind] += count


def _now() -> float:
    return asyncio.get_running_loop().time()
