"""Feeds the mesh's own session: the `update_aggregate` intents of workflows that have ended, from the store's outbox.

Each partition of the outbox has a part of the session, which its owner among the reducers folds; its offset in the outbox is
committed with what was counted, and acknowledged after that. So each workflow is counted once, whatever is killed meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import NamedTuple

from pydantic_core import from_json

from omninode.bridge.store.v1 import store_pb2, store_pb2_grpc
from services.chassis.errors import BridgeError, Unavailable
from services.chassis.partitions import lease_name
from services.reducer.aggregation.config import SECOND, Config, Gap
from services.reducer.aggregation.durable import OWN_SESSION, Head, key_of
from services.reducer.aggregation.item import Columns
from services.reducer.aggregation.metrics import AggregationMetrics
from services.reducer.aggregation.request import MAX_SIZE
from services.reducer.aggregation.session import Part
from services.reducer.aggregation.sessions import Sessions
from services.reducer.aggregation.storage import Storage
from services.reducer.aggregation.writer import Writer

_log = logging.getLogger(__name__)

ROLE = "reducer"
WORK = "aggregates"
CONSUMER = "aggregates"
_INTENT = "update_aggregate"
_CLOCKS = 2 * SECOND
"""How far the clocks of the store's node and of its database may lie apart: an idle partition's event time stays so far behind."""
_CHARACTERS = 440
"""Of a workflow's id; the others are shorter."""
_DIGITS = 19
"""Of an int64."""
_GROUPS = 16
"""Responses of the outbox that wait for their turn."""
_GROUP_EVENTS = 5000
"""Workflows of one commit, about."""
_PARTS_SECONDS = 5.0
"""Between two looks at what the other parts have counted."""
_PAUSE_SECONDS = 1.0
"""Between two tries of a partition whose feed broke."""


class _Intents(NamedTuple):
    """The intents of whole offsets of a partition."""

    events: Sequence[store_pb2.OutboxEvent]
    offset: int
    """Everything up to it has been seen."""
    idle_until: int | None
    """Where nothing came up to this moment, in microseconds."""


class Intake:
    """The folders of the partitions that this node owns. `acquire` and `lose` are told by services.chassis.partitions."""

    def __init__(
        self,
        sessions: Sessions,
        storage: Storage,
        stub: store_pb2_grpc.StoreServiceStub,
        config: Config,
        metrics: AggregationMetrics,
        *,
        now: Callable[[], float],
    ) -> None:
        """`now` is the event loop's time; `config` is the session's."""
        self._sessions = sessions
        self._storage = storage
        self._stub = stub
        self._config = config
        self._metrics = metrics
        self._now = now
        self._asked_at = -_PARTS_SECONDS
        self._closing = 0
        """When all that any part has counted is final, in microseconds, as far as this node knows."""
        self._length = config.window.gap if isinstance(config.window, Gap) else config.window.size
        self._folding: dict[int, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def acquire(self, partition: int, epoch: int) -> None:
        """Begins to fold a partition."""
        self._folding[partition] = asyncio.create_task(self._keep_folding(partition, epoch))

    def lose(self, partition: int) -> None:
        """Stops folding a partition; what is still under way is fenced."""
        if task := self._folding.pop(partition, None):
            task.cancel()
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def aclose(self) -> None:
        """Stops folding."""
        for partition in list(self._folding):
            self.lose(partition)
        while self._ending:
            await asyncio.wait(self._ending)

    async def _keep_folding(self, partition: int, epoch: int) -> None:
        guard = store_pb2.Guard(
            lease=lease_name(ROLE, WORK, partition), epoch=epoch, condition=store_pb2.GUARD_CONDITION_HELD
        )
        failing = False
        while True:
            try:
                key = key_of(OWN_SESSION, partition)
                async with self._sessions.writing(key, self._head, [guard]) as writer:
                    await self._fold(writer, partition, guard)
            except BridgeError as error:
                # Once an outage; a lost lease ends this task soon.
                if not failing:
                    details = {"partition": partition, "reason": error.reason_name}
                    _log.warning("workflows are not aggregated: %s", error.message, extra=details)
                failing = True
            except Exception:
                _log.exception("workflows are not aggregated", extra={"partition": partition})
            await asyncio.sleep(_PAUSE_SECONDS)

    def _head(self, part: Part | None) -> Head:
        if part is None:
            return replace(self._sessions.new_head(OWN_SESSION, self._config), offset=-1)
        return replace(part.head, writer=self._sessions.new_head(OWN_SESSION, self._config).writer)

    async def _fold(self, writer: Writer, partition: int, guard: store_pb2.Guard) -> None:
        acknowledged = -1
        groups: asyncio.Queue[_Intents | Exception] = asyncio.Queue(_GROUPS)
        reading = asyncio.create_task(self._read(groups, partition, from_beginning=writer.head.offset < 0))
        try:
            while True:
                group = await _gathered(groups, self._config.max_wait / SECOND)
                # What was committed before the last owner could acknowledge it comes again.
                events = [event for event in group.events if event.offset > writer.offset]
                if events:
                    await writer.add(_columns(events), [event.offset for event in events], group.offset)
                    self._metrics.taken_in(len(events))
                elif group.idle_until is not None and await self._closes(writer.head, group.idle_until):
                    await writer.advance(group.idle_until, max(group.offset, writer.offset))
                committed = await writer.commit()
                while committed.is_part:
                    self._metrics.committed(committed)
                    committed = await writer.commit()
                self._metrics.committed(committed)
                if group.offset > acknowledged:
                    request = store_pb2.AckOutboxRequest(
                        consumer=CONSUMER, partition=partition, offset=group.offset, guard=guard
                    )
                    await self._stub.AckOutbox(request)
                    acknowledged = group.offset
        finally:
            reading.cancel()

    async def _closes(self, head: Head, time: int) -> bool:
        """Whether something that any part has counted becomes final by event time having come to `time` in this part."""
        if self._now() - self._asked_at > _PARTS_SECONDS:
            self._asked_at = self._now()
            parts = await self._storage.parts(await self._storage.keys(OWN_SESSION))
            newest = max((part.head.newest for part in parts if part), default=0)
            self._closing = newest + self._length + self._config.allowed_lateness
        return (head.progress.watermark or 0) < self._closing <= time

    async def _read(self, groups: asyncio.Queue[_Intents | Exception], partition: int, *, from_beginning: bool) -> None:
        try:
            async with aclosing(self._intents(partition, from_beginning=from_beginning)) as intents:
                async for group in intents:
                    await groups.put(group)
            failure: Exception = Unavailable("the outbox's feed ended")
        except Exception as broken:
            failure = broken
        await groups.put(failure)

    async def _intents(self, partition: int, *, from_beginning: bool) -> AsyncGenerator[_Intents, None]:
        """The intents from behind the last acknowledgement on, or from the beginning, in groups of whole offsets."""
        request = store_pb2.WatchOutboxRequest(
            consumer=CONSUMER,
            partition=partition,
            kind=store_pb2.EVENT_KIND_INTENT,
            event_types=[_INTENT],
            from_beginning=from_beginning,
        )
        held: list[store_pb2.OutboxEvent] = []
        call = self._stub.WatchOutbox(request)
        try:
            async for response in call:
                held += response.items
                # A response may end within an offset: the rest of it comes with the next.
                whole = [event for event in held if event.offset < response.next_offset]
                held = held[len(whole) :]
                idle = None
                if response.WhichOneof("notice") in ("caught_up", "checkpoint"):
                    time = getattr(response, str(response.WhichOneof("notice"))).time
                    idle = time.seconds * SECOND + time.nanos // 1000 - _CLOCKS if time.seconds else None
                if whole or idle is not None:
                    yield _Intents(whole, response.next_offset - 1, idle)
        finally:
            # Not when the garbage collector comes to it.
            call.cancel()


async def _gathered(groups: asyncio.Queue[_Intents | Exception], seconds: float) -> _Intents:
    """What comes next, and what comes within so many seconds of it. Raises what ended the reading."""
    gathered = _heard(await groups.get())
    if gathered.events:
        # A commit costs the store as much for one workflow as for many.
        await asyncio.sleep(seconds)
    while not groups.empty() and len(gathered.events) < _GROUP_EVENTS:
        group = _heard(groups.get_nowait())
        gathered = _Intents([*gathered.events, *group.events], group.offset, group.idle_until)
    return gathered


def _heard(group: _Intents | Exception) -> _Intents:
    if isinstance(group, Exception):
        raise group
    return group


def _columns(events: Sequence[store_pb2.OutboxEvent]) -> Columns:
    """Workflows as items. Their event time is that of the commit that ended them: it never goes back within a partition."""
    # Whoever may append events may append these: what is no number or text counts as left out, and stops nobody.
    payloads = [from_json(event.event.payload_json) for event in events]
    return Columns(
        [event.commit_time.seconds * SECOND + event.commit_time.nanos // 1000 for event in events],
        [_size(payload.get("size_bytes")) for payload in payloads],
        [_text(payload.get("namespace")) for payload in payloads],
        [_text(payload.get("content_type")) for payload in payloads],
        [_text(payload.get("workflow_id")) for payload in payloads],
        [_text(payload.get("state")) for payload in payloads],
        [""] * len(events),
    )


def _size(value: object) -> int:
    # An int64 of a message, so text in its JSON.
    if not isinstance(value, str | int) or len(str(value)) > _DIGITS or not str(value).isdecimal():
        return 0
    return min(int(value), MAX_SIZE)


def _text(value: object) -> str:
    return value[:_CHARACTERS] if isinstance(value, str) else ""
