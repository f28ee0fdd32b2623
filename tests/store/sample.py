"""Requests to the store that are valid but for what a test gives, and the store's tables as SQL shows them."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import Any, TypeAlias

import asyncpg
from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty

from omninode.bridge.store.v1 import store_pb2 as pb
from omninode.bridge.store.v1.store_pb2_grpc import StoreServiceStub
from services.chassis.errors import Aborted
from services.chassis.identity import partition_of

PARTITIONS = 16
MIB = 1024 * 1024
ABSENT = pb.Expectation(absent=Empty())
ANY = pb.Expectation(any=Empty())
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


def at(version: int) -> pb.Expectation:
    return pb.Expectation(version=version)


def action(action_id: str | None = None, **fields: Any) -> pb.CommitAction:
    return pb.CommitAction(
        **{"action_id": action_id or str(uuid.uuid4()), "fingerprint": b"f" * 32, "type": "started", **fields}
    )


def commit(key: str | None = None, **fields: Any) -> pb.TryCommitRequest:
    """Of a key that nobody else has, with one action, whatever is current."""
    given: dict[str, Any] = {"expected": ANY, "state_json": "{}", **fields}
    if "actions" not in given:
        given["actions"] = [action()]
    return pb.TryCommitRequest(key=key or new_key(), **given)


def event(**fields: Any) -> pb.Event:
    return pb.Event(**{"kind": pb.EVENT_KIND_EVENT, "event_type": "STEP", "topic": "workflow", **fields})


def new_key() -> str:
    return f"workflow/{uuid.uuid4()}"


def keys_in(partition: int, collection: str = "workflow") -> Iterator[str]:
    """Keys of one partition, without end."""
    keys = (f"{collection}/{number:05}" for number in count())
    return (key for key in keys if partition_of(key, PARTITIONS) == partition)


def milliseconds(number: int) -> Duration:
    return Duration(seconds=number // 1000, nanos=number % 1000 * 1_000_000)


@asynccontextmanager
async def sql(database_url: str) -> AsyncIterator[Connection]:
    """A session of the test's own."""
    connection = await asyncpg.connect(database_url)
    try:
        yield connection
    finally:
        await connection.close()


async def rows(database_url: str, query: str, *args: object) -> list[tuple[Any, ...]]:
    async with sql(database_url) as connection:
        return [tuple(row) for row in await connection.fetch(query, *args)]


async def until(connection: Connection, condition: str, *args: object) -> None:
    """Returns when the database says that the condition holds; fails after ten seconds."""
    async with asyncio.timeout(10):
        while not await connection.fetchval(f"SELECT {condition}", *args):
            # Nothing that a session sees is kept between statements, but for this view.
            await connection.execute("SELECT pg_stat_clear_snapshot()")


async def until_waiting(connection: Connection, sessions: int = 1) -> None:
    """Returns when as many sessions of the database wait for a lock."""
    await until(
        connection,
        "count(*) = $1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
        sessions,
    )


async def hold(connection: Connection, *partitions: int) -> None:
    """Takes rows of store_partitions until the end of the connection's transaction: no commit to them passes.

    They are there since the first call to any node.
    """
    taken = await connection.fetch("SELECT FROM store_partitions WHERE partition = ANY ($1) FOR UPDATE", partitions)
    assert len(taken) == len(partitions)


async def try_commit(stub: StoreServiceStub, request: pb.TryCommitRequest) -> pb.TryCommitResponse:
    """The answer; the request is sent again as long as other replicas come first."""
    async with asyncio.timeout(30):
        while True:
            with suppress(Aborted):
                return await stub.TryCommit(request)


async def log(database_url: str) -> list[tuple[int, int, int, str, str | None, int]]:
    """Every action of the log, in order: partition, offset, index, action_id, key, version."""
    return await rows(
        database_url,
        "SELECT partition, commit_offset, action_index, action_id::text, key, version FROM workflow_commits ORDER BY 1, 2, 3",
    )


async def counts(database_url: str) -> dict[str, int]:
    """How many rows each table has, and how many offsets were given out; the nodes' own leases not counted."""
    ((states, commits, blobs, chunks, references, leases, offsets),) = await rows(
        database_url,
        "SELECT (SELECT count(*) FROM workflow_state), (SELECT count(*) FROM workflow_commits), (SELECT count(*) FROM blobs),"
        " (SELECT count(*) FROM blob_chunks), (SELECT count(*) FROM blob_references),"
        " (SELECT count(*) FROM leases WHERE name NOT LIKE 'store/%'),"
        " (SELECT coalesce(sum(next_offset), 0)::bigint FROM store_partitions)",
    )
    return {
        "states": states,
        "commits": commits,
        "blobs": blobs,
        "chunks": chunks,
        "references": references,
        "leases": leases,
        "offsets": offsets,
    }


async def end_lease(database_url: str, name: str) -> None:
    """Makes it the lease's last moment, by the database's clock."""
    async with sql(database_url) as connection:
        await connection.execute("UPDATE leases SET expires_at = clock_timestamp() WHERE name = $1", name)
