"""The sessions that this node writes: who writes each, how many there are, and what they may take in memory together.

What a stream does is `stream`'s; what readers see is `reader`'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from functools import partial

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from omninode.bridge.reducer.v1 import aggregation_pb2 as pb
from omninode.bridge.store.v1 import store_pb2
from services.chassis.boundary import Boundary, Name
from services.chassis.errors import BridgeError, from_validation, invalid_field
from services.chassis.server_interceptor import ShuttingDown
from services.reducer.aggregation import request
from services.reducer.aggregation.config import SECOND, Config
from services.reducer.aggregation.contract import SessionStage, Terms
from services.reducer.aggregation.durable import OWN_SESSION, Head, Progress, key_of
from services.reducer.aggregation.error import SessionTakenOver, TooManySessions
from services.reducer.aggregation.fold import CustomFold, Folds
from services.reducer.aggregation.message import fill_session
from services.reducer.aggregation.metrics import AggregationMetrics
from services.reducer.aggregation.session import Part, Session
from services.reducer.aggregation.storage import Storage
from services.reducer.aggregation.stream import Stream, responses_of
from services.reducer.aggregation.writer import Writer

_log = logging.getLogger(__name__)


class AggregationSettings(BaseModel):
    """How much of aggregation one node takes on. How sessions count is in the contract's subcontracts. Times in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    max_sessions: int = Field(100, gt=0)
    """Sessions with a writer at once; each has two tasks, and its share of the memory that the contract allows for all."""
    max_future: float = Field(60.0, ge=0)
    """How far in the future an event time may lie. One item from next year would make all others late."""
    leave_seconds: float = Field(5.0, gt=0)
    """How long a stream that was cut off may take to say in the store that nobody writes its session any more."""


class _Opening(Boundary):
    """The first message of a stream, but for the configuration."""

    session: Name
    acknowledged_offset: int = Field(ge=0)


class Sessions:
    """The writers of one node.

    `subscribe` calls back with what is committed of a key, wherever, until what it returns is called. `now` is the event loop's
    time, `wall` that of the clock in seconds since 1970.
    """

    def __init__(
        self,
        storage: Storage,
        folds: Folds,
        terms: Terms,
        settings: AggregationSettings,
        metrics: AggregationMetrics,
        *,
        subscribe: Callable[[str, Callable[[Part], None]], Callable[[], None]],
        new_id: Callable[[], str],
        now: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self._storage = storage
        self._folds = folds
        self._terms = terms
        self._settings = settings
        self._metrics = metrics
        self._subscribe = subscribe
        self._new_id = new_id
        self._now = now
        self._wall = wall
        self._writers: dict[str, Writer] = {}
        """By key: of sessions, and of the parts of the mesh's own."""
        self._streams: dict[str, Stream] = {}
        """By session; the last that opened it."""
        self._places: Counter[str] = Counter()
        """How many streams have each session, or are about to."""
        self._leaving: set[asyncio.Task[None]] = set()
        self._draining = False
        metrics.observe(self._writers.values)

    def stage(self, session: str) -> SessionStage | None:
        """What a session does, if this node writes it."""
        writer = self._writers.get(key_of(session))
        return writer.stage if writer else None

    def taken_in(self, session: str) -> int:
        """The offset up to which a session's input is counted here, committed or not; 0 where this node does not write it."""
        writer = self._writers.get(key_of(session))
        return writer.offset if writer else 0

    async def aggregate(
        self, requests: AsyncIterator[pb.AggregateRequest]
    ) -> AsyncGenerator[pb.AggregateResponse, None]:
        """Answers one Aggregate call."""
        message = await anext(aiter(requests), None)
        if message is None or message.WhichOneof("frame") != "open":
            raise request.first_frame()
        asked = _opening(message.open)
        head_of = partial(self._head, message.open)
        if self._draining:
            raise ShuttingDown
        async with self._place(asked.session), self.writing(key_of(asked.session), head_of) as writer:
            stream = Stream(writer, requests, self._terms, self._metrics, now=self._now, latest=self._latest)
            if earlier := self._streams.get(asked.session):
                earlier.cut(SessionTakenOver(metadata={"session": asked.session}))
            self._streams[asked.session] = stream
            stop_hearing = self._subscribe(key_of(asked.session), partial(_hear, stream, writer))
            try:
                yield self._opened(writer, asked.acknowledged_offset)
                async for committed in writer.answers_after(asked.acknowledged_offset):
                    for response in responses_of(committed, finished=False):
                        yield response
                async with aclosing(stream.responses()) as responses:
                    async for response in responses:
                        yield response
            finally:
                stop_hearing()
                if self._streams.get(asked.session) is stream:
                    del self._streams[asked.session]
                self._leave(stream, writer)

    @asynccontextmanager
    async def _place(self, session: str) -> AsyncIterator[None]:
        """A place for the writer of a session, which it may take from another of the same. Raises TooManySessions."""
        if not self._places[session] and len(+self._places) >= self._settings.max_sessions:
            raise TooManySessions(metadata={"limit": str(self._settings.max_sessions)})
        self._places[session] += 1
        try:
            yield
        finally:
            self._places[session] -= 1
            self._places = +self._places

    @asynccontextmanager
    async def writing(
        self, key: str, head_of: Callable[[Part | None], Head], guards: Sequence[store_pb2.Guard] = ()
    ) -> AsyncIterator[Writer]:
        """A writer of a key, which counts among this node's while the context lasts. Raises what Writer.open does."""
        writer = await Writer.open(
            self._storage,
            key,
            head_of,
            fold_of=self._fold_of,
            terms=self._terms,
            guards=guards,
            now=self._now,
            bound=partial(self._bound, key),
        )
        self._writers[key] = writer
        try:
            yield writer
        finally:
            if self._writers.get(key) is writer:
                del self._writers[key]

    def new_head(self, session: str, config: Config) -> Head:
        """The head of a session that is not there yet."""
        return Head(session, config, self._new_id(), False, 0, Progress(), "", 0, ())

    def drain(self) -> None:
        """Ends all streams, each after what it has taken in is committed."""
        self._draining = True
        for stream in self._streams.values():
            stream.end(ShuttingDown())

    async def aclose(self) -> None:
        """Returns when nothing writes any more."""
        while self._leaving:
            await asyncio.wait(self._leaving)

    def _head(self, asked: pb.OpenSession, part: Part | None) -> Head:
        offset = part.head.offset if part else 0
        if asked.acknowledged_offset > offset:
            raise invalid_field("open.acknowledged_offset", f"must be at most {offset}, which is all that is counted")
        if part is None:
            config = request.to_config(asked.config, self._terms.sessions)
            return self.new_head(asked.session, config)
        request.check_config(asked.session, asked.config, part.head.config)
        return part.head if part.head.finished else replace(part.head, writer=self._new_id())

    def _fold_of(self, config: Config) -> CustomFold | None:
        return self._folds.get(config.custom_fold) if config.custom_fold else None

    def _opened(self, writer: Writer, acknowledged: int) -> pb.AggregateResponse:
        response = pb.AggregateResponse()
        opened = response.opened
        fill_session(opened.session, Session.of([writer.part]), writer.stage)
        opened.next_offset = writer.head.offset + 1
        opened.repeated_from_offset = max(acknowledged, writer.head.released_offset) + 1
        return response

    def _latest(self) -> int:
        return round((self._wall() + self._settings.max_future) * SECOND)

    def _bound(self, key: str) -> int:
        """What one writer may take in memory: what the others leave, and its equal share at least."""
        everybody = self._terms.all_bytes
        left = everybody - sum(writer.size_bytes for other, writer in self._writers.items() if other != key)
        return min(self._terms.session_bytes, max(left, everybody // max(1, len(self._writers))))

    def _leave(self, stream: Stream, writer: Writer) -> None:
        """Sees a stream that ended, or was cut off, to its end: then nobody writes the session."""

        async def leave() -> None:
            try:
                async with asyncio.timeout(self._settings.leave_seconds):
                    await stream.stopped()
                    await writer.leave()
            except (SessionTakenOver, TimeoutError):
                pass  # the next writer takes it up as it is
            except BridgeError as error:
                _log.warning("a session is not left: %s", error.message, extra={"reason": error.reason_name})

        task = asyncio.create_task(leave())
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)


def _hear(stream: Stream, writer: Writer, part: Part) -> None:
    """Ends a stream whose session another node has taken up."""
    if part.version > writer.part.version and part.head.writer not in ("", writer.head.writer):
        stream.cut(SessionTakenOver(metadata={"session": part.head.session}))


def _opening(message: pb.OpenSession) -> _Opening:
    if message.session == OWN_SESSION:
        raise invalid_field("open.session", f"must not be {OWN_SESSION}, which is the mesh's own")
    try:
        return _Opening.model_validate(message)
    except ValidationError as error:
        raise from_validation(error, "open") from error
