"""The stamping node in this process: its real servicer, its real ledger, real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry

from omninode.bridge.stamping.v1 import stamping_pb2, stamping_pb2_grpc
from services.chassis.client import ClientSettings, connect
from services.chassis.feed import Feed, FeedMetrics, FeedSettings
from services.chassis.identity import Uuid7Generator
from services.chassis.listener import Listener
from services.chassis.postgres import Database, PostgresSettings
from services.chassis.server import Server, ServerSettings
from services.stamping.domain import Limits
from services.stamping.journal import Journal, JournalSettings
from services.stamping.repository import Repositories
from services.stamping.repository.event import CHANNEL
from services.stamping.servicer import StampingServicer

SERVICE = stamping_pb2.DESCRIPTOR.services_by_name["StampingService"]


@asynccontextmanager
async def stamping_node(
    database_url: str,
    limits: Limits | None = None,
    journal_settings: JournalSettings | None = None,
    feed_settings: FeedSettings | None = None,
) -> AsyncIterator[str]:
    """A started node on the database; yields its target."""
    registry = CollectorRegistry()
    settings = PostgresSettings(url=database_url)
    database = await Database.open(settings, registry)
    repositories = Repositories.of(database)
    journal = Journal(repositories.events, journal_settings or JournalSettings(), registry)
    # The poll is long: what a watcher hears in time, it was woken for.
    feed = Feed("stamps", repositories.events, feed_settings or FeedSettings(poll_seconds=60), FeedMetrics(registry))
    listener = Listener(settings, {CHANNEL: [feed.wake]})
    server = Server(ServerSettings(drain_notice_seconds=0, drain_seconds=5), registry)
    servicer = StampingServicer(repositories, journal, feed, limits or Limits(), Uuid7Generator())
    server.add(stamping_pb2_grpc.add_StampingServiceServicer_to_server, servicer, SERVICE)
    feed.start()
    listener.start()
    await server.start()
    try:
        yield f"127.0.0.1:{server.port}"
    finally:
        await server.stop()
        await listener.aclose()
        await feed.aclose()
        await journal.aclose()
        await repositories.close()
        await database.close()


@asynccontextmanager
async def stamping_stub(
    database_url: str, limits: Limits | None = None
) -> AsyncIterator[stamping_pb2_grpc.StampingServiceStub]:
    """A stub of a node on the database, through the chassis' own channel."""
    async with stamping_node(database_url, limits) as target, connect(target, ClientSettings(attempts=1)) as channel:
        yield stamping_pb2_grpc.StampingServiceStub(channel)
