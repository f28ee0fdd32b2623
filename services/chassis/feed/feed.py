"""The feed itself: the reader of its log, and the way of each watcher from the past into the present."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Generic

import prometheus_client
from prometheus_client import CollectorRegistry, Gauge

from omninode.bridge.errors.v1 import errors_pb2
from services.chassis.errors import ResourceExhausted, invalid_field
from services.chassis.feed.log import Bounds, Log, Mark, Position, R, View
from services.chassis.feed.settings import FeedSettings
from services.chassis.feed.tail import Chunk, Tail
from services.chassis.feed.watcher import Watcher

_log = logging.getLogger(__name__)


class TooManyWatchers(ResourceExhausted):
    """The node serves as many watchers as it may; another replica may have room."""

    reason = errors_pb2.ERROR_REASON_TOO_MANY_WATCHERS


class FeedMetrics:
    """What a node's feeds say of themselves, by the feed's name."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.watchers = Gauge("feed_watchers", "Streams that follow the feed.", ["feed"], registry=registry)
        self.rows = prometheus_client.Counter(
            "feed_rows_passed", "Rows of the log, times the watchers that they passed.", ["feed"], registry=registry
        )
        self.fell_behind = prometheus_client.Counter(
            "feed_fell_behind", "Times that a watcher was too slow for memory.", ["feed"], registry=registry
        )


class Feed(Generic[R]):
    """One log, followed by many. `start` it, `wake` it when the log has grown."""

    def __init__(
        self,
        name: str,
        log: Log[R],
        settings: FeedSettings,
        metrics: FeedMetrics,
        *,
        mark: Mark = lambda _response, _position: None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._name = name
        self._source = log
        self._settings = settings
        self._mark = mark
        self._now = now
        self._tail: Tail[R] | None = None
        """None while nobody watches: then nothing is read."""
        self._opening = asyncio.Lock()
        self._keys: Counter[bytes] = Counter()
        """How many watch with each set of filters."""
        self._stale: set[int] | None = None
        """Partitions that may have grown; None means any."""
        self._growth = asyncio.Event()
        self._reads = asyncio.Semaphore(settings.concurrent_reads)
        self._running: asyncio.Task[None] | None = None
        self._watchers = metrics.watchers.labels(name)
        self._rows = metrics.rows.labels(name)
        self._fell_behind = metrics.fell_behind.labels(name)

    def start(self) -> None:
        """Begins to follow, also while the database is away."""
        self._running = asyncio.create_task(self._follow())

    async def aclose(self) -> None:
        """Stops reading. Watchers are ended by the server, not here."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])

    def wake(self, partitions: Collection[int] | None) -> None:
        """Says that these partitions have grown; None, that any may have."""
        if partitions is None:
            self._stale = None
        elif self._stale is not None:
            self._stale.update(partitions)
        self._growth.set()

    async def watch(
        self,
        view: View[R],
        cursor: str = "",
        *,
        from_beginning: bool = False,
        enter: Callable[[], Awaitable[Position]] | None = None,
    ) -> AsyncGenerator[Any, None]:
        """The responses of one Watch, encoded already, without end but for a Reset.

        `enter` is called once nothing is wrong with the request, and says where to begin where neither cursor nor from_beginning
        does; without it that is now. Raises InvalidArgument
        (INVALID_FIELD, CURSOR_MISMATCH), TooManyWatchers, and what the log's reading raises.
        """
        if cursor and from_beginning:
            raise invalid_field("from_beginning", "must not be set beside a cursor")
        watcher = Watcher(view, self._settings, self._mark)
        with self._watching(watcher):
            bounds = _seen(view, await self._source.bounds())
            given: Position | None = watcher.position_of(cursor, bounds) if cursor else None
            if enter is not None:
                begin = await enter()
                bounds = _seen(view, await self._source.bounds())
                given = given or begin
            if from_beginning:
                given = {partition: bound.first for partition, bound in bounds.items()}
            if given is not None and (reset := watcher.reset(given, bounds)):
                yield reset
                return
            watcher.position = given or {partition: bound.next for partition, bound in bounds.items()}
            tail = await self._opened()
            while not _reaches(tail.end, watcher.position):
                # The cursor's own reader, in another replica, was ahead of this one's.
                self.wake(None)
                if not await watcher.hears(tail.news):
                    yield watcher.notice("checkpoint")
            while True:
                number = tail.next_number
                async for response in self._past(watcher, tail.end):
                    yield response
                if watcher.ended:
                    return
                async for response in self._present(watcher, tail, number):
                    yield response

    async def _past(self, watcher: Watcher[R], end: Position) -> AsyncIterator[bytes]:
        """What the database holds between the watcher's place and `end`; a Reset where it does not any more."""
        place = dict(watcher.position)
        while behind := {partition: offset for partition, offset in place.items() if offset < end[partition]}:
            while not await watcher.takes(self._reads):
                yield watcher.notice("checkpoint")
            try:
                page = await self._source.read(behind, end, self._settings.read_rows, self._settings.message_bytes)
                # Asked after the read: where retention had not come to its beginning by now, it has not taken from it.
                bounds = _seen(watcher.view, await self._source.bounds())
            finally:
                self._reads.release()
            if reset := watcher.reset(behind, bounds):
                watcher.ended = True
                yield reset
                return
            for response in watcher.responses(page.rows, place):
                yield response
                watcher.heard()
            place |= {partition: end[partition] for partition in behind.keys() - set(page.cut)}
            place |= {row.partition: row.offset + 1 for row in page.rows if row.partition in page.cut}
            watcher.position = place
            if watcher.silence() <= 0:
                yield watcher.notice("checkpoint")

    async def _present(self, watcher: Watcher[R], tail: Tail[R], number: int) -> AsyncIterator[bytes]:
        """What comes, from the chunk of this number on; ends when the watcher has fallen behind."""
        caught_up = False
        while True:
            if number < tail.next_number:
                chunk = tail.find(number)
                if chunk is None:
                    if caught_up:
                        self._fell_behind.inc()
                        yield watcher.notice("fell_behind")
                    return
                for response in self._responses(watcher, tail, chunk):
                    yield response
                    watcher.heard()
                self._rows.inc(len(chunk.rows))
                # Only what it sees: in the past it asks for no more than that.
                watcher.position = {partition: chunk.end[partition] for partition in watcher.position}
                number += 1
            elif not caught_up:
                caught_up = True
                yield watcher.notice("caught_up", tail.time)
            elif watcher.silence() > 0:
                await watcher.hears(tail.news)
            if watcher.silence() <= 0:
                yield watcher.notice("checkpoint", tail.time)

    def _responses(self, watcher: Watcher[R], tail: Tail[R], chunk: Chunk[R]) -> list[bytes]:
        responses = chunk.encoded.get(watcher.key)
        if responses is None:
            responses = watcher.responses(chunk.rows, chunk.begin)
            if self._keys[watcher.key] > 1:
                tail.keep(chunk, watcher.key, responses)
        return responses

    async def _opened(self) -> Tail[R]:
        async with self._opening:
            if self._tail is None:
                ends = {partition: bound.next for partition, bound in (await self._source.bounds()).items()}
                self._tail = Tail(ends, self._now(), self._settings.memory_bytes)
                self.wake(None)
            return self._tail

    @contextmanager
    def _watching(self, watcher: Watcher[R]) -> Iterator[None]:
        if self._keys.total() >= self._settings.max_watchers:
            raise TooManyWatchers(metadata={"limit": str(self._settings.max_watchers)})
        self._keys[watcher.key] += 1
        self._watchers.inc()
        try:
            yield
        finally:
            self._watchers.dec()
            self._keys[watcher.key] -= 1
            self._keys += Counter()  # drops what is at zero
            if not self._keys:
                self._tail = None

    async def _follow(self) -> None:
        failing = False
        while True:
            try:
                async with asyncio.timeout(self._settings.poll_seconds):
                    await self._growth.wait()
            except TimeoutError:
                self._stale = None
            self._growth.clear()
            try:
                await self._read()
                failing = False
            except Exception as error:
                # Once an outage: more lines would say no more.
                if not failing:
                    _log.warning("the feed %s cannot read its log", self._name, exc_info=error)
                failing = True
                self._stale = None
                await asyncio.sleep(self._settings.poll_seconds)

    async def _read(self) -> None:
        """Takes in what the log has more than the tail."""
        complete_at = None
        while (tail := self._tail) is not None:
            began = self._now()
            if (began - tail.time).total_seconds() >= self._settings.poll_seconds:
                self._stale = None
            stale, self._stale = self._stale, set()
            if stale is None:
                stale, complete_at = set(tail.end), began
            page = await self._source.read(
                {partition: tail.end[partition] for partition in sorted(stale & tail.end.keys())},
                None,
                self._settings.read_rows,
                self._settings.read_bytes,
            )
            if page.rows:
                tail.add(page.rows)
            if not page.cut:
                tail.time = complete_at or tail.time
                return
            if self._stale is not None:
                self._stale.update(page.cut)


def _seen(view: View[Any], bounds: Mapping[int, Bounds]) -> dict[int, Bounds]:
    """The bounds of what the view sees. Raises InvalidArgument for a partition that the log does not have."""
    if view.partitions is None:
        return dict(bounds)
    for partition in view.partitions:
        if partition not in bounds:
            raise invalid_field(
                "partition", f"must be one of the {len(bounds)} partitions, from 0 on", value=str(partition)
            )
    return {partition: bounds[partition] for partition in view.partitions}


def _reaches(end: Position, position: Position) -> bool:
    return all(end[partition] >= offset for partition, offset in position.items())
