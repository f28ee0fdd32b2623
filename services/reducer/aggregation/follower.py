"""Follows what is committed of sessions, for this node's readers and writers: one stream from the store, whatever its number.

How one session is kept up with is `feed`'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager

from pydantic import BaseModel, ConfigDict, Field

from omninode.bridge.store.v1 import store_pb2, store_pb2_grpc
from services.chassis import timestamp
from services.chassis.feed import FeedMetrics, FeedSettings, TooManyWatchers
from services.reducer.aggregation.durable import COLLECTION, Head, session_of
from services.reducer.aggregation.error import SessionNotFound, SessionTooLarge
from services.reducer.aggregation.feed import SessionFeed
from services.reducer.aggregation.fold import Folds
from services.reducer.aggregation.reader import SessionReader
from services.reducer.aggregation.session import Part
from services.reducer.aggregation.table import Table
from services.reducer.aggregation.view import PaneView

_log = logging.getLogger(__name__)

_PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Seconds between tries to follow the store; a restarted one is back in a second or two."""


class ReadingSettings(BaseModel):
    """What readers of sessions may take of a node. Times in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    memory_bytes: int = Field(128 * 1024 * 1024, gt=0)
    """Of all sessions that are read or watched; 100,000 panes take 60 to 120 MB. What the writers hold is apart from it."""
    idle_tables: int = Field(100, ge=0)
    """Sessions that are kept in memory although nobody watches: a page walk, or a dashboard that polls, finds its session there."""
    idle_seconds: float = Field(60.0, ge=0)
    """How long; longer than a person looks at a page."""
    silence_seconds: float = Field(15.0, gt=0)
    """The store's feed says something every 5 s; after this the stream is taken for dead and begun anew."""


class PaneFeedSettings(FeedSettings):
    """How the feed of each session is shown. What is said of a database is here the session's table in memory."""

    memory_bytes: int = Field(2 * 1024 * 1024, gt=0)
    """Of each session that is watched, of which there may be many; who is farther behind is shown the newest from the table."""
    read_bytes: int = Field(256 * 1024, gt=0)
    """Some 500 panes: the event loop makes them in one turn, in about 10 ms."""


class Follower:
    """The sessions that are read on this node. `start` it; it calls the store only for what somebody asks for."""

    def __init__(
        self,
        stub: store_pb2_grpc.StoreServiceStub,
        folds: Folds,
        settings: ReadingSettings,
        feed_settings: FeedSettings,
        metrics: FeedMetrics,
    ) -> None:
        """`feed_settings` are those of each session's feed, but for the watchers, which are so many in all."""
        self.reader = SessionReader(stub)
        self._stub = stub
        self._folds = folds
        self._settings = settings
        self._feed_settings = feed_settings
        self._metrics = metrics
        self._sessions: dict[str, SessionFeed] = {}
        """The one that was used last at the end."""
        self._expiries: dict[str, asyncio.TimerHandle] = {}
        self._subscribers: dict[str, list[Callable[[Part], None]]] = {}
        self._wanted = asyncio.Event()
        """Set while somebody wants to hear of commits."""
        self._running: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begins to follow what is asked for, also while the store is away."""
        self._running = asyncio.create_task(self._follow())

    async def aclose(self) -> None:
        """Stops following. Watchers are ended by the server, not here."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])
        for session in list(self._sessions.values()):
            self._drop(session)
        if self._closing:
            await asyncio.wait(self._closing)

    def subscribe(self, key: str, hear: Callable[[Part], None]) -> Callable[[], None]:
        """Calls `hear` with what is committed of a key, wherever; the newest may stand for several. Returns what ends it."""
        self._subscribers.setdefault(key, []).append(hear)
        self._wanted.set()

        def end() -> None:
            self._subscribers[key].remove(hear)
            if not self._subscribers[key]:
                del self._subscribers[key]

        return end

    async def current(self, name: str) -> Table:
        """A session's table as of a commit not before the call; it goes on, so look at it before you wait again.

        Raises SessionNotFound, SessionTooLarge, and what makes the store unavailable.
        """
        while True:
            async with self._using(name) as session:
                try:
                    await session.refresh()
                except SessionNotFound:
                    # Its retention is over; by now it may be there anew.
                    continue
                if session.table.session is None:
                    raise SessionNotFound(metadata={"session": name})
                return session.table

    async def watch(self, view: PaneView, cursor: str, *, from_beginning: bool) -> AsyncGenerator[bytes, None]:
        """The responses of one Watch. Raises TooManyWatchers, CURSOR_MISMATCH, SessionTooLarge."""
        limit = self._feed_settings.max_watchers
        if sum(session.watchers for session in self._sessions.values()) >= limit:
            raise TooManyWatchers(metadata={"limit": str(limit)})
        async with self._using(view.session) as session:
            session.watchers += 1
            self._wanted.set()
            try:
                watch = session.watch(view, cursor, from_beginning=from_beginning)
                async with aclosing(watch) as responses:
                    async for response in responses:
                        yield response
            finally:
                session.watchers -= 1

    @asynccontextmanager
    async def _using(self, name: str) -> AsyncIterator[SessionFeed]:
        keys = await self.reader.keys(name)
        session = self._sessions.get(name)
        if session is None or session.failure is not None:
            session = SessionFeed(
                name,
                keys,
                self.reader,
                self._folds,
                settings=self._feed_settings,
                metrics=self._metrics,
                admit=self._admit,
            )
        self._cancel_expiry(name)
        self._sessions[name] = session
        session.users += 1
        try:
            yield session
        except SessionTooLarge as error:
            session.failure = error
            raise
        finally:
            session.users -= 1
            if not session.users:
                self._leave(session)

    def _leave(self, session: SessionFeed) -> None:
        if (
            session.failure is not None
            or session.table.session is None
            or self._sessions.get(session.name) is not session
        ):
            self._drop(session)
            return
        self._sessions[session.name] = self._sessions.pop(session.name)
        loop = asyncio.get_running_loop()
        self._expiries[session.name] = loop.call_later(self._settings.idle_seconds, self._drop, session)
        idle = [kept for kept in self._sessions.values() if not kept.users]
        for oldest in idle[: max(0, len(idle) - self._settings.idle_tables)]:
            self._drop(oldest)

    def _drop(self, session: SessionFeed) -> None:
        if self._sessions.get(session.name) is session:
            self._cancel_expiry(session.name)
            del self._sessions[session.name]
        task = asyncio.create_task(session.aclose())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _cancel_expiry(self, name: str) -> None:
        if expiry := self._expiries.pop(name, None):
            expiry.cancel()

    def _admit(self, session: SessionFeed) -> None:
        """Makes room for a session that has grown. Raises SessionTooLarge where all that is left is in use."""
        limit = self._settings.memory_bytes
        excess = sum(held.size_bytes for held in self._sessions.values()) - limit
        for idle in [held for held in self._sessions.values() if not held.users]:
            if excess <= 0:
                break
            excess -= idle.size_bytes
            self._drop(idle)
        if excess > 0:
            raise SessionTooLarge(metadata={"session": session.name, "limit_bytes": str(limit)})

    async def _follow(self) -> None:
        tries = 0
        while True:
            await self._wanted.wait()
            try:
                async with aclosing(self._responses()) as responses:
                    async for heard in responses:
                        tries = 0
                        await self._hear(heard)
                        if not self._is_wanted():
                            self._wanted.clear()
                            break
            except Exception as error:
                # Once an outage: more lines would say no more.
                if not tries:
                    _log.warning("the store's commits are not followed", exc_info=error)
            else:
                continue
            await asyncio.sleep(_PAUSES[min(tries, len(_PAUSES) - 1)])
            tries += 1

    async def _responses(self) -> AsyncGenerator[store_pb2.WatchCommitsResponse, None]:
        """The store's feed from now on, until it breaks off or falls silent."""
        call = self._stub.WatchCommits(store_pb2.WatchCommitsRequest(collection=COLLECTION, include_states=True))
        try:
            responses = aiter(call)
            while True:
                async with asyncio.timeout(self._settings.silence_seconds):
                    response = await anext(responses, None)
                if response is None:
                    return
                yield response
        finally:
            call.cancel()

    async def _hear(self, response: store_pb2.WatchCommitsResponse) -> None:
        if response.WhichOneof("notice") == "caught_up":
            # A new stream begins now, so whatever was committed before is read, the newest alone.
            for watched in self._sessions.values():
                if watched.watchers:
                    watched.refresh_soon()
            keys = sorted(self._subscribers)
            for key, part in zip(keys, await self.reader.parts(keys), strict=True):
                if part is not None:
                    self._tell(key, part)
        # Of a key's commits the newest names the deltas of all.
        newest = {item.key: item for item in response.items if item.state_json}
        for key, item in newest.items():
            session = self._sessions.get(session_of(key))
            if (session is None or not session.watchers) and key not in self._subscribers:
                continue
            part = Part(item.version, Head.from_json(item.state_json), timestamp.to_time(item.commit_time))
            if session is not None and session.watchers:
                session.offer(key, part)
            self._tell(key, part)

    def _tell(self, key: str, part: Part) -> None:
        for hear in list(self._subscribers.get(key, ())):
            hear(part)

    def _is_wanted(self) -> bool:
        return bool(self._subscribers) or any(session.watchers for session in self._sessions.values())
