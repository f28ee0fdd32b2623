"""One session as readers see it: its table, kept up with what is committed, and the feed of its panes.

Which sessions there are here, and what says that they were committed, is `follower`'s; what a table holds, `table`'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing

from omninode.bridge.errors.v1 import errors_pb2
from services.chassis.errors import BridgeError, NotFound
from services.chassis.feed import Bounds, Feed, FeedMetrics, FeedSettings, Page, Position
from services.reducer.aggregation.cell import Cell, id_of
from services.reducer.aggregation.durable import Delta, DeltaRef, Head, checkpoint_from_bytes, pack_from_bytes
from services.reducer.aggregation.error import SessionNotFound, SessionTooLarge
from services.reducer.aggregation.fold import Folds
from services.reducer.aggregation.pane import CellId
from services.reducer.aggregation.reader import SessionReader
from services.reducer.aggregation.session import Part
from services.reducer.aggregation.table import Deltas, PaneRow, Table, counting_of
from services.reducer.aggregation.view import PaneView

_log = logging.getLogger(__name__)

_BASE_BYTES = 16 * 1024
"""Of a session without panes: its head, its feed, its tasks."""
_TURN_RECORDS = 250
"""Records between two turns of the event loop: about a millisecond."""
_READS = 10
"""Times that a session is read anew because its writer released meanwhile what the head named; it does so once a checkpoint."""
_PAUSES = (0.1, 0.2, 0.5, 1.0, 2.0)
"""Seconds between tries to keep up while the store is away."""


class SessionFeed:
    """A session's table and feed. `admit` is asked after each growth, and raises SessionTooLarge where it is too much."""

    def __init__(
        self,
        name: str,
        keys: Sequence[str],
        reader: SessionReader,
        folds: Folds,
        *,
        settings: FeedSettings,
        metrics: FeedMetrics,
        admit: Callable[[SessionFeed], None],
    ) -> None:
        self.name = name
        self.table = Table(len(keys), folds)
        self.users = 0
        """Calls that have it in hand; those that watch are followed."""
        self.watchers = 0
        self.failure: BridgeError | None = None
        """Why it is of no use any more."""
        self._keys = keys
        self._numbers = {key: number for number, key in enumerate(keys)}
        self._reader = reader
        self._admit = admit
        self._feed: Feed[PaneRow] = Feed("aggregates", _TableLog(self.table), settings, metrics)
        self._is_fed = False
        self._lock = asyncio.Lock()
        """Held while the table is brought up to date."""
        self._begun = self._done = 0
        """The last refresh that began, and that succeeded."""
        self._loading_bytes = 0
        self._news: dict[int, Part] = {}
        self._stale = False
        self._catching_up: asyncio.Task[None] | None = None

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory."""
        return _BASE_BYTES + self.table.size_bytes + self._loading_bytes

    async def aclose(self) -> None:
        """Stops keeping up."""
        if self._catching_up is not None:
            self._catching_up.cancel()
            await asyncio.wait([self._catching_up])
        await self._feed.aclose()

    async def refresh(self) -> None:
        """Brings the table to what was committed before the call. Raises SessionTooLarge, and what the store's reading raises."""
        begun = self._begun
        async with self._lock:
            if self._done > begun:
                return  # another one, which began after this call
            self._begun += 1
            ticket = self._begun
            for number, part in enumerate(await self._reader.parts(self._keys)):
                await self._take(number, part)
            self._done = ticket

    def offer(self, key: str, part: Part) -> None:
        """Hears of a commit; the table is brought there soon, and the watchers are shown what it changed."""
        number = self._numbers.get(key)
        if number is not None:
            self._news[number] = part
            self._wake()

    def refresh_soon(self) -> None:
        """Hears that commits may have been missed."""
        self._stale = True
        self._wake()

    async def watch(self, view: PaneView, cursor: str, *, from_beginning: bool) -> AsyncGenerator[bytes, None]:
        """The responses of one Watch. Raises what the feed and `refresh` raise."""

        async def enter() -> Position:
            # A cursor of another replica may be ahead of this one's table, but never of the store.
            await self.refresh()
            return {number: bound.first for number, bound in self.table.bounds().items()}

        if not self._is_fed:
            self._is_fed = True
            self._feed.start()
        watch = self._feed.watch(view, cursor, from_beginning=from_beginning, enter=enter)
        async with aclosing(watch) as responses:
            async for response in responses:
                if self.failure is not None:
                    raise self.failure
                yield response

    def _wake(self) -> None:
        if self._catching_up is None or self._catching_up.done():
            self._catching_up = asyncio.create_task(self._catch_up())

    async def _catch_up(self) -> None:
        """Takes in what was heard of, until there is no more; waits for a store that is away."""
        tries = 0
        while self.failure is None and (self._stale or self._news):
            try:
                if self._stale:
                    self._stale = False
                    await self.refresh()
                async with self._lock:
                    news, self._news = self._news, {}
                    for number, part in news.items():
                        if part.version > self.table.version(number):
                            await self._take(number, part)
                tries = 0
            except (SessionNotFound, SessionTooLarge) as error:
                self.failure = error
            except Exception as error:
                # Once an outage: more lines would say no more.
                if not tries:
                    _log.warning("a session is not kept up with", exc_info=error, extra={"session": self.name})
                self._stale = True
                await asyncio.sleep(_PAUSES[min(tries, len(_PAUSES) - 1)])
                tries += 1

    async def _take(self, number: int, part: Part | None) -> None:
        """Brings one part of the table to a commit, or a later one."""
        for _ in range(_READS):
            known = self.table.version(number)
            if part is None or part.version < known:
                if known:
                    # Its retention is over; what may come under its name is another session.
                    raise self._gone()
                return
            if part.version == known:
                return
            try:
                if _is_complete(part.head, known):
                    for _ in self.table.apply(number, part, await self._deltas(part.head.pending(known))):
                        await asyncio.sleep(0)
                else:
                    await self._load(number, part)
            except NotFound as error:
                if error.reason != errors_pb2.ERROR_REASON_BLOB_NOT_FOUND:
                    raise
                # Its writer went on meanwhile, and released it.
                (part,) = await self._reader.parts([self._keys[number]])
                continue
            self._feed.wake([number])
            self._admit(self)
            return
        raise NotFound("the session changes faster than it can be read", metadata={"session": self.name})

    async def _load(self, number: int, part: Part) -> None:
        head, cells = part.head, dict[CellId, Cell]()
        counting = counting_of(head.config, len(self._keys))
        try:
            checkpoint = checkpoint_from_bytes(await self._reader.blob(head.checkpoint)) if head.checkpoint else {}
            for digest in sorted({digest for shelf in checkpoint.values() for digest in shelf.packs}):
                pack = pack_from_bytes(await self._reader.blob(digest))
                # A pack may hold shelves that another has replaced.
                records = (
                    it for name in pack if name in checkpoint and digest in checkpoint[name].packs for it in pack[name]
                )
                for count, record in enumerate(records, start=1):
                    cell = cells[id_of(record)] = Cell.of(record, counting)
                    self._loading_bytes += cell.size_bytes
                    if count % _TURN_RECORDS == 0:
                        await asyncio.sleep(0)
                self._admit(self)
            self.table.load(number, part, cells, await self._deltas(head.deltas))
        finally:
            self._loading_bytes = 0

    async def _deltas(self, references: Sequence[DeltaRef]) -> Deltas:
        blobs = await asyncio.gather(*(self._reader.blob(reference.digest) for reference in references))
        deltas = []
        for reference, blob in zip(references, blobs, strict=True):
            deltas.append((reference.version, Delta.from_bytes(blob)))
            await asyncio.sleep(0)
        return deltas

    def _gone(self) -> SessionNotFound:
        self.failure = SessionNotFound(metadata={"session": self.name})
        return self.failure


class _TableLog:
    """A table as a log that other tasks have their turns beside."""

    def __init__(self, table: Table) -> None:
        self._table = table

    async def bounds(self) -> Mapping[int, Bounds]:
        return self._table.bounds()

    async def read(self, begin: Position, end: Position | None, rows: int, size_bytes: int) -> Page[PaneRow]:
        await asyncio.sleep(0)
        return self._table.read(begin, end, rows, size_bytes)


def _is_complete(head: Head, known: int) -> bool:
    """Whether the head still names every delta after this version; those after its checkpoint it always does."""
    return head.checkpoint_version <= known or (bool(head.deltas) and head.deltas[0].version <= known + 1)
