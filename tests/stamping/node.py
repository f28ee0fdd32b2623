"""The stamping node in this process: its real servicer, its real ledger, real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry

from omninode.bridge.stamping.v1 import stamping_pb2, stamping_pb2_grpc
from services.chassis.client import ClientSettings, connect
from services.chassis.identity import Uuid7Generator
from services.chassis.postgres import Database, PostgresSettings
from services.chassis.server import Server, ServerSettings
from services.stamping.domain import Limits
from services.stamping.repository import StampRepository
from services.stamping.servicer import StampingServicer

SERVICE = stamping_pb2.DESCRIPTOR.services_by_name["StampingService"]


@asynccontextmanager
async def stamping_node(database_url: str, limits: Limits | None = None) -> AsyncIterator[str]:
    """A started node on the database; yields its target."""
    registry = CollectorRegistry()
    database = await Database.open(PostgresSettings(url=database_url), registry)
    stamps = StampRepository(database)
    server = Server(ServerSettings(drain_notice_seconds=0, drain_seconds=5), registry)
    servicer = StampingServicer(stamps, limits or Limits(), Uuid7Generator())
    server.add(stamping_pb2_grpc.add_StampingServiceServicer_to_server, servicer, SERVICE)
    await server.start()
    try:
        yield f"127.0.0.1:{server.port}"
    finally:
        await server.stop()
        await stamps.close()
        await database.close()


@asynccontextmanager
async def stamping_stub(
    database_url: str, limits: Limits | None = None
) -> AsyncIterator[stamping_pb2_grpc.StampingServiceStub]:
    """A stub of a node on the database, through the chassis' own channel."""
    async with stamping_node(database_url, limits) as target, connect(target, ClientSettings(attempts=1)) as channel:
        yield stamping_pb2_grpc.StampingServiceStub(channel)
