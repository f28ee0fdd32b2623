"""The store node in this process: its real servicer, repositories and workers, real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from prometheus_client import CollectorRegistry

from omninode.bridge.store.v1 import store_pb2_grpc
from services.chassis.client import ClientSettings, connect
from services.chassis.feed import FeedSettings
from services.chassis.partitions import PartitionSettings
from services.chassis.server import Server, ServerSettings
from services.store.domain import Limits, LogSettings
from services.store.materializer import MaterializerSettings
from services.store.node import StorePostgresSettings, StoreSettings, add, assembled
from services.store.retention import RetentionSettings


def store_settings(database_url: str, **sections: Any) -> StoreSettings:
    """The defaults on a database, but for the sections that are given."""
    given = {
        "server": ServerSettings(drain_notice_seconds=0, drain_seconds=5),
        "database": StorePostgresSettings(url=database_url),
        "log": LogSettings(),
        "limits": Limits(),
        "feed": FeedSettings(),
        "projection": MaterializerSettings(),
        # Its own sweeper leaves what a test has made old to the test.
        "retention": RetentionSettings(first_sweep_seconds=86_400),
        "partitions": PartitionSettings(ttl_seconds=1.5, margin_seconds=0.3, retry_seconds=0.1),
        **sections,
    }
    return StoreSettings(**given)


@asynccontextmanager
async def store_node(
    database_url: str, *, registry: CollectorRegistry | None = None, **sections: Any
) -> AsyncIterator[str]:
    """A started node on the database; yields its target. `sections` are settings that differ from the defaults."""
    registry = registry or CollectorRegistry()
    tuned = store_settings(database_url, **sections)
    async with assembled(tuned, registry) as servicer:
        server = Server(tuned.server, registry)
        add(servicer, server)
        await server.start()
        try:
            yield f"127.0.0.1:{server.port}"
        finally:
            await server.stop()


@asynccontextmanager
async def store_stub(database_url: str, **sections: Any) -> AsyncIterator[store_pb2_grpc.StoreServiceStub]:
    """A stub of a node on the database, through the chassis' own channel."""
    async with store_node(database_url, **sections) as target, connect(target, ClientSettings(attempts=1)) as channel:
        yield store_pb2_grpc.StoreServiceStub(channel)
