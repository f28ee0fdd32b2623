"""The real PostgreSQL of a test session, and a migrated database for each test that asks for one."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from hypothesis import settings

from services.chassis.embedded import EmbeddedPostgres
from services.chassis.migration import upgrade
from tests.mesh.running import Mesh, running_mesh

# The same examples on every machine and in every run, and no deadline on a busy one; `--hypothesis-profile=explore` looks further.
settings.register_profile("steady", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None, max_examples=2_000)
settings.load_profile("steady")

_TEMPLATE = "migrated"


def _database_url(server: str, database: str) -> str:
    return urlunsplit(urlsplit(server)._replace(path=f"/{database}"))


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real PostgreSQL with an empty database. It never syncs: a test's data need not survive the machine."""
    folder: Path = tmp_path_factory.mktemp("postgres")
    with EmbeddedPostgres(folder, durable=False) as postgres:
        yield postgres.url


@pytest.fixture(scope="session")
def migrated_template(postgres_server: str) -> str:
    """The name of a database with the newest schema, to copy from."""
    asyncio.run(_execute(postgres_server, f"CREATE DATABASE {_TEMPLATE}"))
    upgrade(_database_url(postgres_server, _TEMPLATE))
    return _TEMPLATE


@pytest.fixture
async def database_url(postgres_server: str, migrated_template: str) -> AsyncIterator[str]:
    """The URL of a database of the test's own, with the newest schema."""
    name = f"test_{uuid.uuid4().hex}"
    await _execute(postgres_server, f"CREATE DATABASE {name} TEMPLATE {migrated_template}")
    try:
        yield _database_url(postgres_server, name)
    finally:
        await _execute(postgres_server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A real mesh that the tests of a session share; a test that harms one starts its own."""
    with running_mesh(tmp_path_factory.mktemp("mesh")) as running:
        yield running
