"""A node's readers in this process over a store that a test gives, and a writer that commits what a script says."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry

from omninode.bridge.reducer.v1 import reducer_pb2, reducer_pb2_grpc
from omninode.bridge.reducer.v1.reducer_pb2_grpc import ReducerServiceStub
from services.chassis.client import ClientSettings, connect
from services.chassis.feed import FeedMetrics, FeedSettings
from services.chassis.server import Server, ServerSettings
from services.reducer.aggregation.contract import SessionStage
from services.reducer.aggregation.durable import key_of
from services.reducer.aggregation.fold import Folds
from services.reducer.aggregation.follower import Follower, ReadingSettings
from services.reducer.aggregation.pane import CellId
from services.reducer.aggregation.reader import SessionReader
from services.reducer.aggregation.servicer import AggregationServicer
from services.reducer.aggregation.storage import Storage
from tests.reducer.aggregation.scripted import ScriptedPart

SERVICE = reducer_pb2.DESCRIPTOR.services_by_name["ReducerService"]
QUIET = FeedSettings(poll_seconds=60, checkpoint_seconds=60)
"""Only commits wake it, and nothing is heard but what happens."""


@asynccontextmanager
async def following(store: Any, feed: FeedSettings = QUIET, **settings: Any) -> AsyncIterator[Follower]:
    """A started follower of a store's stub."""
    follower = Follower(store, Folds(), ReadingSettings(**settings), feed, FeedMetrics(CollectorRegistry()))
    follower.start()
    try:
        yield follower
    finally:
        await follower.aclose()


class _Stages:
    """What a node says of the sessions that it writes."""

    def __init__(self, stages: dict[str, SessionStage]) -> None:
        self.stage = stages.get


@asynccontextmanager
async def reading_stub(
    store: Any, feed: FeedSettings = QUIET, stages: dict[str, SessionStage] | None = None, **settings: Any
) -> AsyncIterator[ReducerServiceStub]:
    """A stub of a server that answers what readers ask."""
    async with following(store, feed, **settings) as follower:
        server = Server(ServerSettings(drain_notice_seconds=0, drain_seconds=5), CollectorRegistry())
        sessions: Any = _Stages(stages or {})
        servicer = AggregationServicer(sessions, follower)  # type: ignore[abstract]  # it answers no other call
        server.add(reducer_pb2_grpc.add_ReducerServiceServicer_to_server, servicer, SERVICE)
        await server.start()
        try:
            async with connect(f"127.0.0.1:{server.port}", ClientSettings(attempts=1)) as channel:
                yield ReducerServiceStub(channel)
        finally:
            await server.stop()


@dataclass
class Script:
    """A session's part that commits to a store what it is told."""

    store: Any
    name: str = "uploads"
    number: int | None = None
    part: ScriptedPart = field(init=False)

    def __post_init__(self) -> None:
        self.part = ScriptedPart(self.name)

    async def commit(
        self, items: Iterable[tuple[CellId, int]] = (), watermark: int | None = None, *, writer: str = "one"
    ) -> None:
        """Commits items and a watermark."""
        self.part.commit(items, watermark, writer=writer)
        await self._send()

    async def checkpoint(self, keep: int = 1) -> None:
        """Commits a checkpoint, and releases the deltas that it does not keep."""
        assert self.part.head is not None
        before = {delta.digest for delta in self.part.head.deltas}
        self.part.checkpoint(keep)
        await self._send(sorted(before - {delta.digest for delta in self.part.head.deltas}))

    async def _send(self, released: Iterable[str] = ()) -> None:
        assert self.part.head is not None
        storage = Storage(SessionReader(self.store), self.store, new_id=uuid.uuid4)
        await storage.commit(
            key_of(self.name, self.number),
            self.part.version - 1,
            self.part.head,
            action_type="aggregated",
            state="AGGREGATING",
            blobs=self.part.blobs,
            released=list(released),
        )
        self.part.blobs.clear()
