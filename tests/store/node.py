"""The store node in this process: its real servicer, its real repositories, real sockets."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry

from omninode.bridge.store.v1 import store_pb2, store_pb2_grpc
from services.chassis.client import ClientSettings, connect
from services.chassis.postgres import Database, PostgresSettings
from services.chassis.server import Server, ServerSettings
from services.store.domain import Limits
from services.store.repository import Repositories
from services.store.servicer import StoreServicer

SERVICE = store_pb2.DESCRIPTOR.services_by_name["StoreService"]


@asynccontextmanager
async def store_node(database_url: str, limits: Limits | None = None) -> AsyncIterator[str]:
    """A started node on the database; yields its target."""
    registry = CollectorRegistry()
    database = await Database.open(PostgresSettings(url=database_url), registry)
    repositories = Repositories.of(database)
    server = Server(ServerSettings(drain_notice_seconds=0, drain_seconds=5), registry)
    servicer = StoreServicer(repositories, limits or Limits(), uuid.uuid4)
    server.add(store_pb2_grpc.add_StoreServiceServicer_to_server, servicer, SERVICE)
    await server.start()
    try:
        yield f"127.0.0.1:{server.port}"
    finally:
        await server.stop()
        await repositories.close()
        await database.close()


@asynccontextmanager
async def store_stub(database_url: str, limits: Limits | None = None) -> AsyncIterator[store_pb2_grpc.StoreServiceStub]:
    """A stub of a node on the database, through the chassis' own channel."""
    async with store_node(database_url, limits) as target, connect(target, ClientSettings(attempts=1)) as channel:
        yield store_pb2_grpc.StoreServiceStub(channel)
