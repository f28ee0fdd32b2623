"""A sweeper of every partition on a test's database, and what makes the database's rows old."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry

from omninode.bridge.store.v1.store_pb2_grpc import StoreServiceStub
from services.chassis.postgres import Database, PostgresSettings
from services.store.repository.retention import RetentionRepository
from services.store.retention import RetentionSettings
from services.store.sweeper import Sweeper
from tests.store.node import store_stub
from tests.store.sample import PARTITIONS, rows, sql

BRISK = RetentionSettings(pause_seconds=0)
"""The defaults, for who waits for a sweep."""
DAY = 24


def unswept_stub(database_url: str) -> AbstractAsyncContextManager[StoreServiceStub]:
    """A stub of a node whose own sweeper does not come before the test is over."""
    return store_stub(database_url, retention=RetentionSettings(first_sweep_seconds=DAY * 3600))


class Sweeping(NamedTuple):
    """A sweeper that holds every partition, and what it works on."""

    sweeper: Sweeper
    retention: RetentionRepository
    registry: CollectorRegistry
    database: Database


@asynccontextmanager
async def sweeping(
    database_url: str,
    settings: RetentionSettings = BRISK,
    drop_dead_generations: Callable[[int], Awaitable[int]] | None = None,
) -> AsyncIterator[Sweeping]:
    """A sweeper that was not started: a test sweeps by hand."""
    registry = CollectorRegistry()
    database = await Database.open(PostgresSettings(url=database_url), registry)
    retention = RetentionRepository.of(database)
    sweeper = Sweeper(retention, settings, registry, drop_dead_generations)
    for partition in range(PARTITIONS):
        sweeper.acquire(partition, 1)
    try:
        yield Sweeping(sweeper, retention, registry, database)
    finally:
        await sweeper.aclose()
        await database.close()


async def swept(database_url: str, settings: RetentionSettings = BRISK) -> dict[str, int]:
    """What one sweep of everything deletes, by kind."""
    async with sweeping(database_url, settings) as running:
        return {kind: count for kind, count in (await running.sweeper.sweep()).items() if count}


async def project(database_url: str) -> None:
    """Says that every partition is projected to its end."""
    async with sql(database_url) as connection:
        await connection.execute(
            "INSERT INTO projection_watermarks (partition, watermark) SELECT partition, next_offset FROM store_partitions"
            " ON CONFLICT (partition) DO UPDATE SET watermark = excluded.watermark"
        )


async def age(database_url: str, hours: float) -> None:
    """Makes every commit, state, blob and upload that there is older."""
    async with sql(database_url) as connection, connection.transaction():
        for table, column in (
            ("workflow_commits", "committed_at"),
            ("workflow_state", "updated_at"),
            ("blobs", "created_at"),
            ("blob_chunks", "created_at"),
        ):
            await connection.execute(f"UPDATE {table} SET {column} = {column} - $1 * interval '1 hour'", hours)


async def register(database_url: str, consumer: str, partition: int, next_offset: int) -> None:
    """Registers a consumer of the outbox in one partition."""
    async with sql(database_url) as connection:
        await connection.execute(
            "INSERT INTO outbox_consumers (consumer, partition, next_offset, registered_at) VALUES ($1, $2, $3, now())"
            " ON CONFLICT (consumer, partition) DO UPDATE SET next_offset = excluded.next_offset",
            consumer,
            partition,
            next_offset,
        )


async def floors(database_url: str, partition: int) -> tuple[int, int]:
    """Where the log and the outbox of a partition begin."""
    ((log, outbox),) = await rows(
        database_url, "SELECT first_offset, first_event_offset FROM store_partitions WHERE partition = $1", partition
    )
    return log, outbox


async def everything(database_url: str) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of the tables that retention touches, without the floors and without times."""
    return {
        table: await rows(database_url, f"SELECT {columns} FROM {table} ORDER BY {columns}")
        for table, columns in {
            "workflow_commits": "partition, commit_offset, action_index, action_id, key, version, state, events",
            "workflow_state": "key, version, state, final, forgotten",
            "workflow_projection": "generation, key",
            "blob_references": "key, digest",
            "blobs": "digest",
            "blob_chunks": "upload_id, position",
        }.items()
    }
