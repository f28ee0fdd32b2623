"""The store node as a process: settings, pool, repositories, servicer, workers, serve."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Annotated

import uvloop
from prometheus_client import CollectorRegistry
from pydantic import Field

from omninode.bridge.store.v1 import store_pb2, store_pb2_grpc
from services.chassis import contracts, settings
from services.chassis.feed import FeedSettings
from services.chassis.listener import Listener
from services.chassis.partitions import Partitions, PartitionSettings
from services.chassis.postgres import Database, PostgresSettings
from services.chassis.server import Server, ServerSettings
from services.chassis.settings import SharedVariable
from services.chassis.telemetry import configure_logging, new_registry
from services.store.domain import Limits, LogSettings
from services.store.expirer import Expirer
from services.store.feeds import Feeds
from services.store.local import LocalStore
from services.store.materializer import Materializer, MaterializerSettings
from services.store.reader import ProjectionReader
from services.store.rebuild import Rebuilder
from services.store.repository import Repositories
from services.store.repository.partition import PartitionCountDiffers
from services.store.retention import RetentionSettings
from services.store.servicer import StoreServicer
from services.store.sweeper import Sweeper

CONTRACT = Path(__file__).with_name("contract.yaml")
ROLE = "store"
WORK = "log"
"""What the replicas share: projecting the partitions of the log, and sweeping them."""
_log = logging.getLogger(__name__)
SERVICE = store_pb2.DESCRIPTOR.services_by_name["StoreService"]


class StorePostgresSettings(PostgresSettings):
    """How the store meets PostgreSQL; the earlier bridge's names are read, too. Times in seconds."""

    pool_max: Annotated[int, SharedVariable("CANONICAL_STORE_POOL_SIZE")] = Field(default=8, gt=0)
    """Connections of one process, beside the one that listens. Commits need two, each feed and the projections one, reads the rest;
    the pools of the seven nodes, 56 in all, leave room below PostgreSQL's default of 100."""
    statement_timeout: Annotated[float, SharedVariable("CANONICAL_STORE_TIMEOUT_MS", 0.001)] = Field(default=10.0, gt=0)
    """PostgreSQL ends a statement after it. The largest batch takes tens of milliseconds; what runs longer waits on a lock."""


class StoreSettings(settings.NodeSettings):
    """What an operator tunes of this node."""

    server: ServerSettings
    database: StorePostgresSettings
    log: LogSettings
    limits: Limits
    feed: FeedSettings
    projection: MaterializerSettings
    retention: RetentionSettings
    partitions: PartitionSettings


@asynccontextmanager
async def assembled(tuned: StoreSettings, registry: CollectorRegistry) -> AsyncIterator[StoreServicer]:
    """The servicer on its database, with its workers running; ends workers, commits and pool in this order."""
    async with AsyncExitStack() as ending:
        database = await Database.open(tuned.database, registry)
        ending.push_async_callback(database.close)
        repositories = Repositories.of(database, tuned.log.partitions)
        ending.push_async_callback(repositories.close)
        await _check_partitions(repositories)
        feeds = Feeds.of(repositories, tuned.feed, registry)
        reader = ProjectionReader(repositories.projections, tuned.projection.reread_seconds, registry)
        rebuilder = Rebuilder(repositories.rebuilds, repositories.leases, tuned.projection, _new_owner)
        ending.push_async_callback(rebuilder.aclose)
        servicer = StoreServicer(
            repositories,
            feeds=feeds,
            reader=reader,
            rebuilder=rebuilder,
            limits=tuned.limits,
            retention=tuned.retention,
            new_id=uuid.uuid4,
            registry=registry,
        )
        materializer = Materializer(repositories.projections, tuned.projection, registry)
        sweeper = Sweeper(
            repositories.retention, tuned.retention, registry, repositories.rebuilds.drop_dead_generations
        )

        def acquire(partition: int, epoch: int) -> None:
            materializer.acquire(partition, epoch)
            sweeper.acquire(partition, epoch)

        def lose(partition: int) -> None:
            materializer.lose(partition)
            sweeper.lose(partition)

        partitions = Partitions(
            LocalStore(servicer),
            role=ROLE,
            work=WORK,
            owner=_new_owner(),
            settings=tuned.partitions,
            on_acquired=acquire,
            on_lost=lose,
        )
        listener = Listener(
            tuned.database,
            {
                "store_commits": (materializer.wake, feeds.commits.wake, feeds.outbox.wake),
                "store_projections": (reader.projected,),
                "store_leases": (feeds.leases.wake,),
            },
        )
        for worker in (
            feeds,
            materializer,
            sweeper,
            Expirer(repositories.leases),
            listener,
            partitions,
        ):
            worker.start()
            ending.push_async_callback(worker.aclose)
        yield servicer


def add(servicer: StoreServicer, server: Server) -> None:
    """Serves the contract on a server."""
    server.add(store_pb2_grpc.add_StoreServiceServicer_to_server, servicer, SERVICE)
    server.on_stop(servicer.end_waits)


async def serve(tuned: StoreSettings) -> None:
    """Serves until SIGTERM; then ends calls, and what `assembled` ends, so that nothing acknowledged is lost."""
    registry = new_registry()
    async with assembled(tuned, registry) as servicer:
        server = Server(tuned.server, registry)
        add(servicer, server)
        await server.run()


def _new_owner() -> str:
    return uuid.uuid4().hex


async def _check_partitions(repositories: Repositories) -> None:
    """Raises PartitionCountDiffers. A database that cannot be asked now is asked at the first call."""
    try:
        await repositories.partitions.count()
    except PartitionCountDiffers:
        raise
    except Exception as error:
        _log.warning("partitions not known yet: %s", error)


def main() -> int:
    """Runs the node in this process. Raises ContractError, SettingsError, PortInUse, PartitionCountDiffers."""
    tuned = settings.load(StoreSettings, node="store", contract=contracts.load(CONTRACT), environ=os.environ)
    configure_logging("store", tuned.server.log_level)
    uvloop.run(serve(tuned))
    return 0
