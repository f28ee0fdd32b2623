"""A stub of a store node: on a database of the test's own, or on one that a module's tests share.

A node and its stub belong to one event loop: a module that uses them marks its tests with `loop_scope="module"`.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest_asyncio

from omninode.bridge.store.v1.store_pb2_grpc import StoreServiceStub
from tests.store.node import store_stub


@pytest_asyncio.fixture(loop_scope="module")
async def stub(database_url: str) -> AsyncIterator[StoreServiceStub]:
    """Of a node on the test's own database."""
    async with store_stub(database_url) as stub:
        yield stub


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_url(postgres_server: str, migrated_template: str) -> str:
    """A database for tests that mind only what they add to it; it goes with the server."""
    name = f"test_{uuid.uuid4().hex}"
    connection = await asyncpg.connect(postgres_server)
    await connection.execute(f"CREATE DATABASE {name} TEMPLATE {migrated_template}")
    await connection.close()
    return urlunsplit(urlsplit(postgres_server)._replace(path=f"/{name}"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_stub(shared_url: str) -> AsyncIterator[StoreServiceStub]:
    """Of a node on the shared database."""
    async with store_stub(shared_url) as stub:
        yield stub
