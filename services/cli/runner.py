"""Runs a mesh for a command: the database, its schema, the nodes. What keeps them running is the chassis's supervisor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import typer

from services.chassis import migration
from services.chassis.embedded import EmbeddedPostgres
from services.chassis.folder import MeshError
from services.chassis.keeper import Report
from services.chassis.migration import MigrationError
from services.chassis.supervisor import NodeProcess, StopAsked, Supervisor
from services.cli.failure import INTERRUPTED, CommandError
from services.cli.interruption import unwind_on_signals
from services.cli.mesh import HOST, NodeAddress, environment_of

T = TypeVar("T")


@asynccontextmanager
async def mesh(
    verb: str, addresses: Sequence[NodeAddress], data: Path, database_url: str | None, report: Report
) -> AsyncIterator[Supervisor]:
    """A mesh whose nodes are healthy, over `database_url` or a PostgreSQL of its own in `data`; it stops with the block.

    Raises CommandError in the name of `verb` where the mesh cannot run, and ends the command where a stop was asked for before.
    """
    nodes = [
        NodeProcess(node.node, node.argv, node.port, node.metrics_port, HOST, environment_of(node, addresses))
        for node in addresses
    ]
    try:
        if database_url:
            await _migrate(database_url)
        postgres = None if database_url else EmbeddedPostgres(data)
        async with Supervisor(nodes, data, postgres=postgres, on_database=_migrate, report=report) as supervisor:
            yield supervisor
    except StopAsked:
        raise typer.Exit(INTERRUPTED) from None
    except (MeshError, MigrationError) as error:
        raise CommandError(f"{verb}: {error}") from error
    finally:
        # The supervisor has left its signals to their defaults.
        unwind_on_signals()


async def unless_stopped(supervisor: Supervisor, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; once Ctrl-C or SIGTERM asks for a stop, `work` is cancelled and the command ends."""
    working = asyncio.create_task(work)
    stopping = asyncio.create_task(supervisor.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        stopping.result()
        raise typer.Exit(INTERRUPTED)
    finally:
        for task in (working, stopping):
            task.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)


@contextmanager
def database(environment: Mapping[str, str], data: Path) -> Iterator[str]:
    """The URL of the database of DATABASE_URL, or of the embedded one in `data`, which runs for the block.

    Raises CommandError, for a MigrationError of the block too.
    """
    try:
        if url := environment.get("DATABASE_URL"):
            yield url
            return
        with EmbeddedPostgres(data) as postgres:
            yield postgres.url
    except (MeshError, MigrationError) as error:
        raise CommandError(f"migrate: {error}") from error


async def _migrate(url: str) -> None:
    await asyncio.to_thread(migration.upgrade, url)
