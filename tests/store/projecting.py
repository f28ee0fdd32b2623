"""A store replica as far as it makes and shows projections, in this process: its materializer, its readers, its real sockets."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

from prometheus_client import CollectorRegistry

from omninode.bridge.store.v1 import store_pb2 as pb
from omninode.bridge.store.v1 import store_pb2_grpc
from services.chassis.client import ClientSettings, connect
from services.chassis.listener import Listener
from services.chassis.postgres import Database, PostgresSettings
from services.chassis.server import Server, ServerSettings
from services.store.domain import Append, Appended, Committed, Limits
from services.store.materializer import Materializer, MaterializerSettings
from services.store.message import to_commit
from services.store.reader import ProjectionReader
from services.store.rebuild import Rebuilder
from services.store.repository.append import AppendRepository
from services.store.repository.commit import CommitRepository
from services.store.repository.lease import LeaseRepository
from services.store.repository.partition import PartitionRepository
from services.store.repository.projection import ProjectionRepository
from services.store.repository.rebuild import RebuildRepository
from services.store.servicer.projection import ProjectionServicer
from tests.store.sample import PARTITIONS, commit

SERVICE = pb.DESCRIPTOR.services_by_name["StoreService"]
NEVER = 3600.0
"""Seconds: a poll that would hide a lost notification."""
BY_EAR = MaterializerSettings(poll_seconds=NEVER, reread_seconds=NEVER)
"""Of who works by notifications alone."""


@dataclass(frozen=True)
class Replica:
    """What a test works with."""

    registry: CollectorRegistry
    commits: CommitRepository
    appends: AppendRepository
    leases: LeaseRepository
    projections: ProjectionRepository
    generations: RebuildRepository
    materializer: Materializer
    reader: ProjectionReader
    stub: store_pb2_grpc.StoreServiceStub

    async def commit(self, key: str | None = None, **fields: Any) -> Committed:
        """A commit that is taken."""
        outcome = await self.commits.commit(to_commit(commit(key, **fields)))
        assert isinstance(outcome, Committed)
        return outcome

    async def append(self, *partition_keys: str) -> list[Appended]:
        """Events without a state."""
        events = [
            pb.Event(kind=pb.EVENT_KIND_EVENT, event_type="STEP", topic="workflow", partition_key=key)
            for key in partition_keys
        ]
        request = pb.AppendEventsRequest(request_id=str(uuid.uuid4()), events=events)
        return await self.appends.add(Append.model_validate(request))

    def own(self, epoch: int = 1) -> None:
        """Gives the materializer every partition."""
        for partition in range(PARTITIONS):
            self.materializer.acquire(partition, epoch)

    async def project_all(self, epoch: int = 1) -> None:
        """Projects everything that is committed, without the materializer."""
        epochs = dict.fromkeys(range(PARTITIONS), epoch)
        await self.projections.begin(epochs)
        while await self.projections.advance(epochs, 100):
            pass

    async def get(self, key: str, min_version: int = 0, wait_seconds: int = 0) -> pb.GetProjectionResponse:
        """GetProjection."""
        request = pb.GetProjectionRequest(key=key, min_version=min_version)
        request.max_wait.seconds = wait_seconds
        return await self.stub.GetProjection(request)

    async def caught_up(self) -> None:
        """Returns when everything is projected; fails after twenty seconds."""
        async with asyncio.timeout(20):
            while any(mark.lag.commits for mark in await self.projections.watermarks()):
                pass

    async def until_sample(self, name: str, value: float) -> None:
        """Returns when a metric has this value, which is a moment after the database shows why; fails after twenty seconds."""
        async with asyncio.timeout(20):
            while self.sample(name) != value:
                await self.projections.watermarks()

    def sample(self, name: str) -> float:
        """A metric's value."""
        value = self.registry.get_sample_value(name)
        assert value is not None, name
        return value


@asynccontextmanager
async def replica(
    database_url: str, settings: MaterializerSettings = BY_EAR, limits: Limits | None = None, *, hearing: bool = True
) -> AsyncIterator[Replica]:
    """A replica that hears the notifications, or none; its materializer owns nothing yet."""
    registry = CollectorRegistry()
    async with AsyncExitStack() as ending:
        database = await Database.open(PostgresSettings(url=database_url), registry)
        ending.push_async_callback(database.close)
        partitions = PartitionRepository(database)
        await partitions.count()
        commits = CommitRepository(database, partitions)
        ending.push_async_callback(commits.close)
        projections = ProjectionRepository(database, partitions)
        ending.push_async_callback(projections.close)
        leases, generations = LeaseRepository(database), RebuildRepository(database)
        rebuilder = Rebuilder(generations, leases, settings, lambda: str(uuid.uuid4()))
        ending.push_async_callback(rebuilder.aclose)
        reader = ProjectionReader(projections, settings.reread_seconds, registry)
        materializer = Materializer(projections, settings, registry)
        materializer.start()
        ending.push_async_callback(materializer.aclose)
        channels = {"store_commits": (materializer.wake,), "store_projections": (reader.projected,)}
        listener = Listener(PostgresSettings(url=database_url), channels if hearing else {})
        listener.start()
        ending.push_async_callback(listener.aclose)
        server = Server(ServerSettings(drain_notice_seconds=0, drain_seconds=5), CollectorRegistry())
        # Abstract by the stubs, which ask for the whole contract.
        servicer = cast(Any, ProjectionServicer)(projections, reader, rebuilder, limits or Limits())
        server.add(store_pb2_grpc.add_StoreServiceServicer_to_server, servicer, SERVICE)
        await server.start()
        ending.push_async_callback(server.stop)
        channel = await ending.enter_async_context(connect(f"127.0.0.1:{server.port}", ClientSettings(attempts=1)))
        yield Replica(
            registry,
            commits,
            AppendRepository(database, partitions),
            leases,
            projections,
            generations,
            materializer,
            reader,
            store_pb2_grpc.StoreServiceStub(channel),
        )
