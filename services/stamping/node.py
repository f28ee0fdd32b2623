"""The stamping node as a process: settings, pool, repositories, journal, feed, servicer, serve."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from pathlib import Path

import uvloop

from omninode.bridge.stamping.v1 import stamping_pb2, stamping_pb2_grpc
from services.chassis import contracts, settings
from services.chassis.feed import Feed, FeedMetrics, FeedSettings
from services.chassis.identity import Uuid7Generator
from services.chassis.listener import Listener
from services.chassis.postgres import Database, PostgresSettings
from services.chassis.server import Server, ServerSettings
from services.chassis.telemetry import configure_logging, new_registry
from services.stamping.domain import Limits
from services.stamping.journal import Journal, JournalSettings
from services.stamping.repository import Repositories
from services.stamping.repository.event import CHANNEL
from services.stamping.servicer import StampingServicer

CONTRACT = Path(__file__).with_name("contract.yaml")
SERVICE = stamping_pb2.DESCRIPTOR.services_by_name["StampingService"]


class StampingSettings(settings.NodeSettings):
    """What an operator tunes of this node."""

    server: ServerSettings
    database: PostgresSettings
    limits: Limits
    journal: JournalSettings
    feed: FeedSettings


async def serve(tuned: StampingSettings) -> None:
    """Serves until SIGTERM; then ends calls, feed, notes, ledger and pool in this order, so that nothing acknowledged is lost."""
    registry = new_registry()
    async with AsyncExitStack() as ending:
        database = await Database.open(tuned.database, registry)
        ending.push_async_callback(database.close)
        repositories = Repositories.of(database)
        ending.push_async_callback(repositories.close)
        journal = Journal(repositories.events, tuned.journal, registry)
        ending.push_async_callback(journal.aclose)
        feed = Feed("stamps", repositories.events, tuned.feed, FeedMetrics(registry))
        ending.push_async_callback(feed.aclose)
        listener = Listener(tuned.database, {CHANNEL: [feed.wake]})
        ending.push_async_callback(listener.aclose)
        feed.start()
        listener.start()
        server = Server(tuned.server, registry)
        servicer = StampingServicer(repositories, journal, feed, tuned.limits, Uuid7Generator())
        server.add(stamping_pb2_grpc.add_StampingServiceServicer_to_server, servicer, SERVICE)
        await server.run()


def main() -> int:
    """Runs the node in this process. Raises ContractError, SettingsError, PortInUse."""
    tuned = settings.load(StampingSettings, node="stamping", contract=contracts.load(CONTRACT), environ=os.environ)
    configure_logging("stamping", tuned.server.log_level)
    uvloop.run(serve(tuned))
    return 0
