"""How many partitions a database has: what its first node made of it, whatever later ones are set to."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator

import pytest
from prometheus_client import CollectorRegistry

from services.chassis.postgres import Database, PostgresSettings
from services.store.repository.partition import PartitionCountDiffers, PartitionRepository
from tests.store.sample import rows, sql, until_waiting


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = await Database.open(PostgresSettings(url=database_url), CollectorRegistry())
    yield database
    await database.close()


@pytest.mark.parametrize(
    ("wanted", "count"),
    [pytest.param(None, 16, id="not set"), pytest.param(1, 1, id="one"), pytest.param(40, 40, id="forty")],
)
async def test_a_new_database_gets_as_many_partitions_as_are_wanted_counted_from_0(
    database: Database, database_url: str, wanted: int | None, count: int
) -> None:
    assert await PartitionRepository(database, wanted).count() == count
    assert await rows(database_url, "SELECT partition, next_offset FROM store_partitions ORDER BY 1") == [
        (partition, 0) for partition in range(count)
    ]
    assert await PartitionRepository(database).count() == count


async def test_a_setting_that_contradicts_the_database_is_refused_and_changes_nothing(
    database: Database, database_url: str
) -> None:
    await PartitionRepository(database, 5).count()
    with pytest.raises(PartitionCountDiffers) as refusal:
        await PartitionRepository(database, 6).count()
    assert refusal.value.metadata == {"partition_count": "5", "setting": "6"}
    assert await rows(database_url, "SELECT count(*) FROM store_partitions") == [(5,)]


async def test_of_two_first_nodes_at_once_the_later_takes_what_the_earlier_made(
    database: Database, database_url: str
) -> None:
    async with sql(database_url) as earlier, sql(database_url) as watcher:
        async with earlier.transaction():
            await earlier.execute("LOCK TABLE store_partitions IN SHARE ROW EXCLUSIVE MODE")
            await earlier.execute("INSERT INTO store_partitions (partition) SELECT generate_series(0, 2)")
            later = asyncio.create_task(PartitionRepository(database).count())
            await until_waiting(watcher)
        assert await later == 3


async def test_a_node_whose_setting_contradicts_the_database_does_not_start(
    database: Database, database_url: str
) -> None:
    await PartitionRepository(database, 5).count()
    environment = {**os.environ, "DATABASE_URL": database_url, "OMNIBRIDGE_STORE__LOG__PARTITIONS": "6"}
    command = [sys.executable, "-m", "services.cli.main", "serve", "store"]
    node = await asyncio.create_subprocess_exec(*command, env=environment, stderr=asyncio.subprocess.PIPE)
    _, said = await asyncio.wait_for(node.communicate(), 60)
    assert node.returncode == 1
    assert b"omnibridge: store: the database has 5 partitions and the setting log.partitions says 6" in said
