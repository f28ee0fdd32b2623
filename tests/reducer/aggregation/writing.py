"""A node's sessions in this process, over a store that a test gives; and a writer's side of Aggregate."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from google.protobuf.json_format import ParseDict
from prometheus_client import CollectorRegistry

from omninode.bridge.reducer.v1 import aggregation_pb2 as pb
from omninode.bridge.reducer.v1 import reducer_pb2_grpc
from omninode.bridge.reducer.v1.reducer_pb2_grpc import ReducerServiceStub
from services.chassis import contracts
from services.chassis.client import ClientSettings, connect
from services.chassis.server import Server, ServerSettings
from services.reducer import node
from services.reducer.aggregation.config import SECOND
from services.reducer.aggregation.contract import Terms
from services.reducer.aggregation.fold import Folds
from services.reducer.aggregation.metrics import AggregationMetrics
from services.reducer.aggregation.reader import SessionReader
from services.reducer.aggregation.servicer import AggregationServicer
from services.reducer.aggregation.sessions import AggregationSettings, Sessions
from services.reducer.aggregation.storage import Storage
from services.reducer.node import SERVICE

NOW = 1_800_000_000
"""Seconds since 1970: when items happen in tests."""


def terms_of(**changes: Any) -> Terms:
    """What the node's own contract says, but for some changes."""
    return replace(node.terms_of(contracts.load(node.CONTRACT)), **changes)


def sessions_over(stub: Any, terms: Terms | None = None, **settings: Any) -> Sessions:
    """A node's sessions over a stub of the store. Their clock stands at NOW."""
    return Sessions(
        Storage(SessionReader(stub), stub, new_id=uuid.uuid4),
        Folds(),
        terms or terms_of(),
        AggregationSettings(**settings),
        AggregationMetrics(CollectorRegistry()),
        subscribe=lambda _key, _hear: lambda: None,
        new_id=lambda: uuid.uuid4().hex,
        now=time.monotonic,
        wall=lambda: NOW,
    )


@asynccontextmanager
async def writing_stub(sessions: Sessions) -> AsyncIterator[ReducerServiceStub]:
    """A stub of a server that answers Aggregate alone."""
    server = Server(ServerSettings(drain_notice_seconds=0, drain_seconds=5), CollectorRegistry())
    nobody: Any = None
    servicer = AggregationServicer(sessions, nobody)  # type: ignore[abstract]  # it answers no other call
    server.add(reducer_pb2_grpc.add_ReducerServiceServicer_to_server, servicer, SERVICE)
    server.on_stop(sessions.drain)
    await server.start()
    try:
        async with connect(f"127.0.0.1:{server.port}", ClientSettings(attempts=1)) as channel:
            yield ReducerServiceStub(channel)
    finally:
        await server.stop()
        await sessions.aclose()


def opening(session: str, acknowledged: int = 0, **config: Any) -> pb.AggregateRequest:
    """A first message; by default a session of 5 s windows that commits at once and shows nothing early."""
    fields = {"tumbling": {"size": "5s"}, "early_period": "0s", "max_wait": "0s", "allowed_lateness": "2s"} | config
    if "hopping" in config or "session_window" in config:
        del fields["tumbling"]
    message = ParseDict(fields, pb.AggregationConfig())
    return pb.AggregateRequest(open=pb.OpenSession(session=session, config=message, acknowledged_offset=acknowledged))


def columns(first: int, seconds: Iterable[float], namespace: str = "a", size: int = 1) -> pb.AggregateRequest:
    """Items at these seconds after NOW."""
    times = [round((NOW + second) * SECOND) for second in seconds]
    return pb.AggregateRequest(
        columns=pb.ItemColumns(
            first_offset=first,
            event_times_us=times,
            sizes_bytes=[size] * len(times),
            texts=[namespace],
            namespaces=[0] * len(times),
        )
    )


def heartbeat(offset: int, second: float) -> pb.AggregateRequest:
    """Event time has come so far."""
    message = pb.Heartbeat(offset=offset)
    message.event_time.FromMicroseconds(round((NOW + second) * SECOND))
    return pb.AggregateRequest(heartbeat=message)


FINISH = pb.AggregateRequest(finish=pb.Finish())


class Writing:
    """One Aggregate call, message by message."""

    def __init__(self, stub: ReducerServiceStub, first: pb.AggregateRequest) -> None:
        self._messages: asyncio.Queue[pb.AggregateRequest | None] = asyncio.Queue()
        self._messages.put_nowait(first)
        self.call = stub.Aggregate(self._requests())
        self._responses = aiter(self.call)
        self.panes: list[pb.Pane] = []
        self.rejected: list[pb.RejectedItem] = []
        self.offset = 0

    async def opened(self) -> pb.Opened:
        """The stream's first answer."""
        async with asyncio.timeout(10):
            return (await anext(self._responses)).opened

    def send(self, *messages: pb.AggregateRequest) -> None:
        """Sends messages, without waiting for what they are answered with."""
        for message in messages:
            self._messages.put_nowait(message)

    def half_close(self) -> None:
        """Says that nothing more comes."""
        self._messages.put_nowait(None)

    async def until(self, offset: int) -> pb.Acknowledgement:
        """Takes answers until this offset is acknowledged; panes and refusals are kept."""
        async with asyncio.timeout(10):
            while True:
                response = await self.next()
                if response.HasField("acknowledgement") and response.acknowledgement.offset >= offset:
                    return response.acknowledgement

    async def next(self) -> pb.AggregateResponse:
        """The next answer. Raises what ends the stream."""
        async with asyncio.timeout(10):
            response = await anext(self._responses)
        self.panes += response.panes
        self.rejected += response.rejected
        return response

    async def rest(self) -> None:
        """Takes answers to the stream's end. Raises what ends it."""
        async with asyncio.timeout(10):
            async for response in self._responses:
                self.panes += response.panes
                self.rejected += response.rejected
                if response.HasField("acknowledgement"):
                    self.offset = response.acknowledgement.offset

    async def _requests(self) -> AsyncIterator[pb.AggregateRequest]:
        while (message := await self._messages.get()) is not None:
            yield message
