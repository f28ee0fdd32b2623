"""The events' numbers in the ledger: of what was there before them, and of what the release before still writes."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator

import asyncpg
import pytest

from services.chassis import migration
from tests.stamping.node import stamping_stub
from tests.stamping.sample import creation, rows, watching

EARLIER = "INSERT INTO stamp_events (namespace, stamp_id, kind, occurred_at) VALUES ('docs', $1, 'created', now())"
"""As the release before writes it."""


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


async def test_events_from_before_the_numbers_are_numbered_in_their_order(
    database_url: str, connection: asyncpg.Connection
) -> None:
    await asyncio.to_thread(migration.downgrade, database_url, "0005_store_retention")
    ids = [uuid.uuid4() for _ in range(5)]
    for stamp_id in ids:
        await connection.execute(EARLIER, stamp_id)
    await connection.execute("DELETE FROM stamp_events WHERE stamp_id = $1", ids.pop(2))
    # A row that moves in the heap keeps its place.
    await connection.execute("UPDATE stamp_events SET namespace = 'moved' WHERE stamp_id = $1", ids[0])
    await asyncio.to_thread(migration.upgrade, database_url)
    found = await rows(database_url, "SELECT event_offset, stamp_id FROM stamp_events ORDER BY event_offset")
    assert [(row["event_offset"], row["stamp_id"]) for row in found] == list(enumerate(ids))
    assert await connection.fetchval("SELECT next_offset FROM stamp_log") == 4


async def test_what_the_release_before_writes_takes_its_place_among_the_events(
    database_url: str, connection: asyncpg.Connection
) -> None:
    async with stamping_stub(database_url) as stub, watching(stub) as watch:
        await watch.caught_up()
        one = (await stub.CreateStamp(creation(b"one", namespace="docs"))).stamp
        await watch.items(1)
        await connection.execute(EARLIER, uuid.UUID(one.stamp_id))
        # It wakes the watcher, too.
        (event,) = await watch.items(1)
        assert event.stamp == one
        await stub.CreateStamp(creation(b"two", namespace="docs"))
        await watch.items(1)
    found = await rows(database_url, "SELECT event_offset FROM stamp_events ORDER BY event_offset")
    assert [row["event_offset"] for row in found] == [0, 1, 2]


async def test_the_way_back_keeps_the_stamps_and_their_events(
    database_url: str, connection: asyncpg.Connection
) -> None:
    async with stamping_stub(database_url) as stub:
        await stub.CreateStamp(creation())
    await asyncio.to_thread(migration.downgrade, database_url, "0005_store_retention")
    assert await connection.fetchval("SELECT count(*) FROM stamps JOIN stamp_events USING (namespace, stamp_id)") == 1
    await asyncio.to_thread(migration.upgrade, database_url)
    async with stamping_stub(database_url) as stub, watching(stub, from_beginning=True) as watch:
        assert len(await watch.caught_up()) == 1
