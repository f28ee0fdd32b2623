"""Watchers: each follows one feed from its beginning along one line of cursors, over every break; some are slow, some restless."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Collection
from dataclasses import dataclass, field
from random import Random
from typing import Protocol, TypeAlias

import grpc

from omninode.bridge.feed.v1 import feed_pb2
from omninode.bridge.store.v1 import store_pb2 as pb
from omninode.bridge.store.v1.store_pb2_grpc import StoreServiceStub
from services.chassis.errors import Aborted, BridgeError, DeadlineExceeded, ResourceExhausted, Unavailable
from tests.chaos.checker import Shown

Response: TypeAlias = "pb.WatchCommitsResponse | pb.WatchOutboxResponse"
SILENCE_SECONDS = 15.0
"""After this without a response the connection is taken for broken, as feed.proto has it: something comes every few seconds."""


@dataclass(frozen=True, slots=True)
class Habit:
    """How a watcher reads."""

    pause: float = 0.0
    """The longest time for which it stops reading now and then, in seconds."""
    responses: int | None = None
    """How many responses it takes, at most, before it connects again; None for as many as come."""


STEADY = Habit()
SLOW = Habit(pause=2.0)
RESTLESS = Habit(responses=5)


@dataclass(slots=True)
class Line:
    """What one line of cursors showed."""

    name: str
    partitions: Collection[int] | None = None
    """What it is limited to; None for all."""
    shown: list[Shown] = field(default_factory=list)
    cursor: str = ""
    connections: int = 0
    fell_behind: int = 0
    silences: int = 0
    """Times that a connection which was open said nothing."""
    refusals: list[str] = field(default_factory=list)
    """Resets and errors with which no feed may end."""
    _grown: asyncio.Event = field(default_factory=asyncio.Event)

    async def length(self, count: int) -> None:
        """Returns when so many items were shown."""
        while len(self.shown) < count:
            self._grown.clear()
            await self._grown.wait()

    def take(self, response: Response) -> None:
        """Records a response, and its cursor with it."""
        match response.WhichOneof("notice"):
            case None:
                self.shown += [_shown(item) for item in response.items]
                self.cursor = response.cursor
                self._grown.set()
            case "caught_up":
                self.cursor = response.caught_up.position
            case "fell_behind":
                self.fell_behind += 1
                self.cursor = response.fell_behind.position
            case "checkpoint":
                self.cursor = response.checkpoint.position
            case "reset":
                reason = feed_pb2.ResetReason.Name(response.reset.reason)
                self.refusals.append(f"{self.name}: {reason} at {self.cursor}, after {len(self.shown)} items")


class Source(Protocol):
    """A feed."""

    def open(self, line: Line) -> AsyncIterable[Response]:
        """The responses behind the line's cursor, or from the beginning."""

    async def dealt_with(self, line: Line) -> None:
        """What a watcher says once it has seen to what was shown."""


@dataclass(frozen=True, slots=True)
class Commits:
    """The feed of the log, with events."""

    stub: StoreServiceStub

    def open(self, line: Line) -> AsyncIterable[Response]:
        return self.stub.WatchCommits(
            pb.WatchCommitsRequest(
                cursor=line.cursor,
                from_beginning=not line.cursor,
                partitions=line.partitions or (),
                include_events=True,
            )
        )

    async def dealt_with(self, line: Line) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Outbox:
    """The events of one partition, for a consumer that acknowledges."""

    stub: StoreServiceStub
    consumer: str
    partition: int

    def open(self, line: Line) -> AsyncIterable[Response]:
        return self.stub.WatchOutbox(
            pb.WatchOutboxRequest(
                consumer=self.consumer,
                partition=self.partition,
                cursor=line.cursor,
                from_beginning=not line.cursor,
            )
        )

    async def dealt_with(self, line: Line) -> None:
        if line.shown:
            await self.stub.AckOutbox(
                pb.AckOutboxRequest(consumer=self.consumer, partition=self.partition, offset=line.shown[-1].offset),
                timeout=5,
            )


async def watch(source: Source, line: Line, habit: Habit, random: Random) -> None:
    """Follows for ever; every break is followed by another connection behind the last cursor."""
    while True:
        line.connections += 1
        try:
            await _read(source, line, habit, random)
            await source.dealt_with(line)
        except (Unavailable, ResourceExhausted, Aborted, DeadlineExceeded):
            pass
        except TimeoutError:
            line.silences += 1
        except BridgeError as error:
            line.refusals.append(f"{line.name}: {error!r}")
        except grpc.aio.AioRpcError as error:
            line.refusals.append(f"{line.name}: {error.code().name}: {error.details()}")
        await asyncio.sleep(random.uniform(0.05, 0.2))


async def _read(source: Source, line: Line, habit: Habit, random: Random) -> None:
    left = habit.responses and random.randint(1, habit.responses)
    async with asyncio.timeout(SILENCE_SECONDS) as silence:
        async for response in source.open(line):
            line.take(response)
            if left is not None and (left := left - 1) <= 0:
                return
            if habit.pause and random.random() < 0.1:
                silence.reschedule(None)
                await asyncio.sleep(random.uniform(0, habit.pause))
            silence.reschedule(asyncio.get_running_loop().time() + SILENCE_SECONDS)


def _shown(item: pb.CommittedAction | pb.OutboxEvent) -> Shown:
    if isinstance(item, pb.CommittedAction):
        ids = (item.action_id, *(event.event_id for event in item.events))
    else:
        ids = (item.event.event_id,)
    return Shown(item.partition, item.offset, item.index, item.key, item.version, ids)
