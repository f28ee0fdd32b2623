"""Projects the log of the partitions that this replica holds, as soon as it grows.

What a round writes is repository/projection's; who holds which partition chassis/partitions'.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import math
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Annotated

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from pydantic import BaseModel, ConfigDict, Field

from services.chassis.errors import BridgeError
from services.chassis.settings import SharedVariable
from services.store.projection import Round
from services.store.repository.projection import ProjectionRepository

_WARN_INTERVAL = 60.0
"""Seconds between two log lines of lag: it lasts, and the gauge shows each."""
_SIZES = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000)

_log = logging.getLogger(__name__)


class MaterializerSettings(BaseModel):
    """How projections are made."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    batch_size: Annotated[int, SharedVariable("PROJECTION_BATCH_SIZE")] = Field(100, ge=1, le=10_000)
    """Commits that one statement applies of each partition: 1,600 where a replica holds all 16. A commit gains little from a larger
    statement, and readers that wait for any of its commits wait for all of them."""
    gather_seconds: float = Field(0.01, ge=0)
    """From one round to the next while none is full: what is committed meanwhile shares a round, its transaction and its
    notification. The first after a rest begins at once, and so does one that follows a full round."""
    lag_warning_ms: Annotated[int, SharedVariable("PROJECTION_LAG_THRESHOLD_MS")] = Field(250, ge=1)
    """A commit that waited longer for its projection is worth a warning, once a minute; usually it waits some milliseconds."""
    poll_seconds: float = Field(1.0, gt=0)
    """Between two looks at the log where no notification comes: one may be lost with its connection."""
    retry_seconds: float = Field(0.5, gt=0)
    """Between a round that failed and the next: about the time that PostgreSQL's restart takes."""
    reread_seconds: float = Field(0.25, gt=0)
    """Between two looks of a reader that waits for a projection and hears of none: as poll_seconds, for one who is waited for."""
    rebuild_chunk: int = Field(500, ge=1, le=10_000)
    """Keys that a rebuild copies or drops in one transaction: long enough to be few, and some milliseconds for who waits."""
    rebuild_lease_seconds: float = Field(30.0, ge=1, le=3600)
    """How long a rebuild that crashed keeps another from beginning; more than any of its statements may take."""


class _Metrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.lag = Gauge(
            "projection_materializer_wm_lag_ms",
            "Age of the oldest commit that the last round found not projected; 0 where it found none.",
            registry=registry,
        )
        self.projected = Counter(
            "projection_materializer_projections_materialized",
            "Projections written: keys shown at a newer version.",
            registry=registry,
        )
        self.batch_size = Histogram(
            "projection_materializer_batch_size", "Rows of the log a round.", buckets=_SIZES, registry=registry
        )
        self.regressions = Counter(
            "wm_regressions", "Watermarks found lower than they were seen before; never by design.", registry=registry
        )


class Materializer:
    """Keeps the projections of the partitions it is given level with the log.

    It works while there is something to do, and sleeps until it is woken or `poll_seconds` pass. A partition whose lease another
    replica took is fenced in the database by that one's epoch, so being told late does no harm.
    """

    def __init__(
        self,
        projections: ProjectionRepository,
        settings: MaterializerSettings,
        registry: CollectorRegistry,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._projections = projections
        self._settings = settings
        self._metrics = _Metrics(registry)
        self._clock = clock
        self._epochs: dict[int, int] = {}
        self._new: set[int] = set()
        """Held, and earlier owners not fenced yet."""
        self._behind: set[int] = set()
        """Whose log may hold something that is not projected."""
        self._seen: dict[int, int] = {}
        self._woken = asyncio.Event()
        self._warned_at = -math.inf
        self._next_at = -math.inf
        """When the next round may begin, by the loop's clock."""
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to project what it is given."""
        self._running = asyncio.get_running_loop().create_task(self._run(), context=contextvars.Context())

    async def aclose(self) -> None:
        """Ends; a round that is under way is undone, and its owner to come does it."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])

    def acquire(self, partition: int, epoch: int) -> None:
        """Begins with a partition."""
        self._epochs[partition] = epoch
        self._new.add(partition)
        self._woken.set()

    def lose(self, partition: int) -> None:
        """Ends with a partition."""
        self._epochs.pop(partition, None)
        self._new.discard(partition)
        self._behind.discard(partition)

    def wake(self, partitions: Iterable[int] | None) -> None:
        """Something was committed to these partitions; None means any."""
        self._behind.update(self._epochs if partitions is None else self._epochs.keys() & partitions)
        if self._behind:
            self._woken.set()

    async def _run(self) -> None:
        failed, polled_at = False, -math.inf
        while True:
            self._woken.clear()
            try:
                await self._catch_up()
                failed = False
            except Exception as error:
                if not failed:
                    self._complain(error)
                failed = True
            if failed:
                await asyncio.sleep(self._settings.retry_seconds)
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._settings.poll_seconds):
                        await self._woken.wait()
            now = asyncio.get_running_loop().time()
            if now - polled_at >= self._settings.poll_seconds:
                polled_at = now
                self._behind.update(self._epochs)

    async def _catch_up(self) -> None:
        """Rounds until nothing is left that it was told of, or found."""
        if self._new:
            await self._begin()
        while self._behind:
            await self._gather()
            asked = set(self._behind)
            self._behind.clear()
            try:
                rounds = await self._projections.advance(self._part(asked - self._new), self._settings.batch_size)
            except BaseException:
                self.wake(asked)
                raise
            self._observe(rounds)
            # A full round may have left some; one that was told of meanwhile is there already.
            size = self._settings.batch_size
            full = [done.partition for done in rounds if done.watermark - done.before >= size]
            if full:
                self._next_at = -math.inf
            self.wake(full)
            if self._new:
                await self._begin()

    async def _gather(self) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, self._next_at - loop.time()))
        self._next_at = loop.time() + self._settings.gather_seconds

    async def _begin(self) -> None:
        begun = self._part(self._new)
        await self._projections.begin(begun)
        self._new -= {partition for partition, epoch in begun.items() if self._epochs.get(partition) == epoch}
        self.wake(begun)

    def _part(self, partitions: set[int]) -> dict[int, int]:
        """The epochs of those that are still held, in order."""
        return {number: self._epochs[number] for number in sorted(partitions & self._epochs.keys())}

    def _observe(self, rounds: list[Round]) -> None:
        lag = max((done.lag for done in rounds), default=timedelta()) / timedelta(milliseconds=1)
        self._metrics.lag.set(max(lag, 0.0))
        if not rounds:
            return
        self._metrics.batch_size.observe(sum(done.entries for done in rounds))
        self._metrics.projected.inc(sum(done.projected for done in rounds))
        for done in rounds:
            if done.before < self._seen.get(done.partition, 0):
                self._metrics.regressions.inc()
                _log.error(
                    "a watermark went back",
                    extra={"partition": done.partition, "seen": self._seen[done.partition], "found": done.before},
                )
            self._seen[done.partition] = done.watermark
        if lag > self._settings.lag_warning_ms and self._clock() - self._warned_at >= _WARN_INTERVAL:
            self._warned_at = self._clock()
            _log.warning("projections are behind", extra={"lag_ms": round(lag)})

    def _complain(self, error: Exception) -> None:
        if isinstance(error, BridgeError):
            _log.warning("not projected: %s", error.message, extra={"reason": error.reason_name})
        else:
            _log.error("not projected", exc_info=error)
