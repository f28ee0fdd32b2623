"""The orchestrator in this process, over real stamping, reducer and store nodes, real sockets and a real PostgreSQL."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry

from omninode.bridge.orchestrator.v1 import orchestrator_pb2, orchestrator_pb2_grpc
from omninode.bridge.orchestrator.v1.orchestrator_pb2_grpc import OrchestratorServiceStub
from omninode.bridge.reducer.v1.reducer_pb2_grpc import ReducerServiceStub
from omninode.bridge.stamping.v1.stamping_pb2_grpc import StampingServiceStub
from omninode.bridge.store.v1.store_pb2_grpc import StoreServiceStub
from services.chassis import contracts
from services.chassis.client import ClientSettings, connect
from services.chassis.partitions import Partitions, PartitionSettings
from services.chassis.routing import Router
from services.chassis.server import Server, ServerSettings
from services.orchestrator.domain import Coordination, Limits
from services.orchestrator.node import CONTRACT, coordination_of
from services.orchestrator.peer import MessageSettings, Peer, ReducerReplica
from services.orchestrator.runner import ROLE, WORK, Runner, RunnerSettings
from services.orchestrator.servicer import OrchestratorServicer
from tests.reducer.node import reducer_node
from tests.stamping.node import stamping_node
from tests.store.node import store_node

SERVICE = orchestrator_pb2.DESCRIPTOR.services_by_name["OrchestratorService"]
BOUND = 20.0
"""Seconds after which what a test waits for will not come."""
EAGER = PartitionSettings(retry_seconds=0.02)
BRIEF = PartitionSettings(ttl_seconds=1.2, margin_seconds=0.35, retry_seconds=0.02)
"""For tests in which a replica is left for dead."""
RUNNING = RunnerSettings(announce_seconds=60, poll_seconds=0.1, wait_poll_seconds=0.1)
"""No run is so slow that it is announced, on however busy a machine."""

Answer = Callable[[Any, Callable[[Any], Awaitable[Any]]], Awaitable[Any]]
"""What a method answers to a request; the second argument is the node's own method."""


class Gate:
    """Keeps calls of a method back until it is opened."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()

    async def __call__(self, request: Any, own: Callable[[Any], Awaitable[Any]]) -> Any:
        self.reached.set()
        await self.opened.wait()
        return await own(request)


class Between:
    """A stub whose methods a test can answer in the node's place."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub
        self.answers: dict[str, Answer] = {}

    def open(self) -> None:
        """Lets everything through that a gate keeps back: a replica ends only when its calls have."""
        for answer in self.answers.values():
            if isinstance(answer, Gate):
                answer.opened.set()

    def __getattr__(self, method: str) -> Any:
        answer = self.answers.get(method)
        own = getattr(self._stub, method)
        if answer is None:
            return own

        async def call(request: Any, **options: Any) -> Any:
            return await answer(request, lambda given: own(given, **options))

        return call


@dataclass(frozen=True, slots=True)
class Others:
    """The nodes that an orchestrator calls."""

    stamping: StampingServiceStub
    reducer: ReducerServiceStub
    store: StoreServiceStub


@asynccontextmanager
async def other_nodes(database_url: str) -> AsyncIterator[Others]:
    """Started nodes on the database."""
    async with AsyncExitStack() as ending:
        stamping = await ending.enter_async_context(stamping_node(database_url))
        store = await ending.enter_async_context(store_node(database_url))
        reducer = await ending.enter_async_context(reducer_node(store))
        channels = [
            await ending.enter_async_context(connect(target, ClientSettings(attempts=1)))
            for target in (stamping, reducer, store)
        ]
        yield Others(StampingServiceStub(channels[0]), ReducerServiceStub(channels[1]), StoreServiceStub(channels[2]))


class Orchestrator:
    """One replica. Its stubs stand between it and the other nodes."""

    def __init__(
        self,
        others: Others,
        *,
        coordination: Coordination | None = None,
        limits: Limits | None = None,
        messages: MessageSettings | None = None,
        running: RunnerSettings = RUNNING,
        partitions: PartitionSettings = EAGER,
    ) -> None:
        self.owner = str(uuid.uuid4())
        self.stamping = Between(others.stamping)
        self.reducer = Between(others.reducer)
        self.store = Between(others.store)
        messages = messages or MessageSettings()
        self.replica = ReducerReplica(self.reducer, messages)  # type: ignore[arg-type]  # it stands for the stub
        self.peer = Peer(
            stamping=self.stamping,  # type: ignore[arg-type]  # it stands for the stub
            reducers=Router.of(self.replica),
            store=self.store,  # type: ignore[arg-type]  # likewise
            settings=messages,
            actor=self.owner,
            now=time.time_ns,
        )
        self.runner = Runner(self.peer, coordination or coordination_of(contracts.load(CONTRACT)), running)
        self.changed = asyncio.Event()
        self.partitions = Partitions(
            self.store,
            role=ROLE,
            work=WORK,
            owner=self.owner,
            settings=partitions,
            on_acquired=self._acquired,
            on_lost=self._lost,
        )
        self.server = Server(ServerSettings(drain_notice_seconds=0, drain_seconds=5), CollectorRegistry())
        servicer = OrchestratorServicer(self.peer, self.runner, limits or Limits())
        self.server.add(orchestrator_pb2_grpc.add_OrchestratorServiceServicer_to_server, servicer, SERVICE)

    async def owning(self, count: int) -> None:
        """Waits until the replica holds this many partitions."""
        async with asyncio.timeout(BOUND):
            while len(self.partitions.owned()) != count:
                self.changed.clear()
                await self.changed.wait()

    async def die(self) -> None:
        """Ends as a killed process does: nothing is released, nothing is said."""
        self.partitions._release = _nothing  # type: ignore[method-assign, assignment]  # what a killed process does not do
        await self.partitions.aclose()
        for partition in self.partitions.owned():
            self.runner.lose(partition)
        await self.runner.aclose()

    def _acquired(self, partition: int, epoch: int) -> None:
        self.runner.acquire(partition, epoch)
        self.changed.set()

    def _lost(self, partition: int) -> None:
        self.runner.lose(partition)
        self.changed.set()


async def _nothing(_names: list[str]) -> None:
    return


@asynccontextmanager
async def orchestrator(others: Others, **options: Any) -> AsyncIterator[tuple[Orchestrator, OrchestratorServiceStub]]:
    """A started replica and its stub."""
    node = Orchestrator(others, **options)
    node.runner.start()
    node.partitions.start()
    await node.server.start()
    try:
        async with connect(f"127.0.0.1:{node.server.port}", ClientSettings(attempts=1)) as channel:
            yield node, OrchestratorServiceStub(channel)
    finally:
        node.stamping.open()
        node.reducer.open()
        await node.server.stop()
        await node.partitions.aclose()
        await node.runner.aclose()
        await node.peer.aclose()
        await node.replica.aclose()
