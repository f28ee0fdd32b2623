"""The store node: commits, one at a time and by batch, and what the log's order costs."""

from __future__ import annotations

import asyncio
import re
import subprocess
import time
import uuid
from collections.abc import Sequence

import asyncpg

from benchmarks.figure import Figure, median
from benchmarks.load import CALLERS, ROUNDS, against_bare, drive, stub_of
from benchmarks.server import bare, mesh
from omninode.bridge.store.v1 import store_pb2
from omninode.bridge.store.v1.store_pb2_grpc import StoreServiceStub
from services.chassis.cluster import installation

STATE = '{"state":"PENDING","text":"' + "x" * 270 + '"}'
"""A state of about 300 bytes."""
FINGERPRINT = bytes(32)


def commit(key: str) -> store_pb2.TryCommitRequest:
    """A first commit of a key, with an action and an event."""
    request = store_pb2.TryCommitRequest(key=key, state_json=STATE, schema_version=1)
    request.expected.absent.SetInParent()
    action = request.actions.add(action_id=str(uuid.uuid4()), fingerprint=FINGERPRINT, type="submitted")
    action.events.add(kind=store_pb2.EVENT_KIND_EVENT, event_type="SUBMITTED", topic="workflow", payload_json="{}")
    return request


def commits(count: int) -> list[store_pb2.TryCommitRequest]:
    """First commits of distinct keys."""
    return [commit(f"bench/{uuid.uuid4().hex}") for _ in range(count)]


async def try_commit_unary() -> Figure:
    """TryCommit of distinct keys, 64 callers, against the bare handler."""
    with bare() as peer:
        async with mesh("store") as nodes:
            ours = nodes.measured("store")
            async with (
                stub_of(StoreServiceStub, peer.target) as peer_stub,
                stub_of(StoreServiceStub, ours.target) as stub,
            ):
                rounds = [
                    (
                        await drive(peer, peer_stub.TryCommit, commits(4000), CALLERS),
                        await drive(ours, stub.TryCommit, commits(4000), CALLERS),
                    )
                    for _ in range(ROUNDS + 1)
                ]
    return against_bare("try_commit_unary", rounds[1:], bar=0.5)


async def batch_try_commit() -> Figure:
    """BatchTryCommit, 200 a batch, beside pgbench on the same server; 16 callers on either side."""
    batches, size, callers = 80, 200, 16

    def requests() -> list[store_pb2.BatchTryCommitRequest]:
        return [store_pb2.BatchTryCommitRequest(items=commits(size)) for _ in range(batches)]

    async with mesh("store") as nodes:
        ours = nodes.measured("store")
        async with stub_of(StoreServiceStub, ours.target) as stub:
            await asyncio.to_thread(_pgbench, nodes.database_url, "-i", "-q", "-s", "10")
            rounds = []
            for _ in range(ROUNDS + 1):
                updates = await asyncio.to_thread(_pgbench_updates, nodes.database_url)
                rounds.append((updates, await drive(ours, stub.BatchTryCommit, requests(), callers)))
    peer_rate = median([updates for updates, _ in rounds[1:]])
    our_rate = median([our.calls_per_second * size for _, our in rounds[1:]])
    return Figure(
        "batch_try_commit",
        our_rate,
        "commits/s",
        "pgbench of PostgreSQL 18, 16 clients, prepared, single-row update",
        peer_rate,
        our_rate / peer_rate,
        bar=0.6,
        beside={"server CPU us/commit": median([our.cpu_us_per_call / size for _, our in rounds[1:]])},
    )


_UPDATE = "\\set aid random(1, 1000000)\nUPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = :aid;\n"


def _pgbench_updates(url: str) -> float:
    """Single-row updates a second."""
    output = _pgbench(url, "-n", "-M", "prepared", "-c", "16", "-j", "2", "-T", "4", "-f", "/dev/stdin", script=_UPDATE)
    found = re.search(r"tps = ([0-9.]+)", output)
    assert found, output
    return float(found[1])


def _pgbench(url: str, *options: str, script: str = "") -> str:
    ran = subprocess.run(
        [installation().program("pgbench"), *options, url],
        input=script,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return ran.stdout


_TABLES = (
    "CREATE TABLE counters (partition smallint PRIMARY KEY, next_offset bigint NOT NULL) WITH (fillfactor = 10)",
    "INSERT INTO counters SELECT generate_series(0, 15), 0",
    "CREATE TABLE counted (partition smallint, commit_offset bigint, payload text, PRIMARY KEY (partition, commit_offset))",
    "CREATE SEQUENCE positions",
    "CREATE TABLE numbered (partition smallint, position bigint DEFAULT nextval('positions'),"
    " writer xid8 DEFAULT pg_current_xact_id(), payload text, PRIMARY KEY (partition, writer, position))",
)
# Both spread a batch over all partitions, as distinct keys do.
_COUNTED = """
WITH given AS (
    SELECT (item % 16)::smallint AS partition, payload, row_number() OVER (PARTITION BY item % 16 ORDER BY item) - 1 AS place
    FROM unnest($1::text[]) WITH ORDINALITY AS row (payload, item)
), taken AS (
    SELECT partition FROM counters ORDER BY partition FOR UPDATE
), counts AS (
    UPDATE counters SET next_offset = next_offset + batch.number
    FROM (SELECT partition, count(*) AS number FROM given GROUP BY partition) AS batch JOIN taken USING (partition)
    WHERE counters.partition = batch.partition
    RETURNING counters.partition, next_offset - batch.number AS first_offset
)
INSERT INTO counted (partition, commit_offset, payload)
SELECT partition, first_offset + place, payload FROM given JOIN counts USING (partition)
"""
_NUMBERED = """
INSERT INTO numbered (partition, payload)
SELECT (item % 16)::smallint, payload FROM unnest($1::text[]) WITH ORDINALITY AS row (payload, item)
"""


async def commit_order() -> Figure:
    """The log alone: offsets from a locked counter row a partition, beside a sequence with transaction ids; 200 rows a batch."""
    async with mesh() as nodes:
        connections = [await asyncpg.connect(nodes.database_url) for _ in range(4)]
        for statement in _TABLES:
            await connections[0].execute(statement)
        rates: dict[tuple[str, int], list[float]] = {}
        for _ in range(ROUNDS + 1):
            for writers in (1, 2, 4):
                for statement in (_COUNTED, _NUMBERED):
                    rate = await _rows_per_second(connections[:writers], statement)
                    rates.setdefault((statement, writers), []).append(rate)
        for connection in connections:
            await connection.close()
    counted, numbered = (
        {writers: median(rates[statement, writers][1:]) for writers in (1, 2, 4)} for statement in (_COUNTED, _NUMBERED)
    )
    return Figure(
        "commit_order",
        counted[2],
        "rows/s, 2 writers",
        "sequence and transaction id, 2 writers",
        numbered[2],
        counted[2] / numbered[2],
        beside={
            "counter, 1 writer": counted[1],
            "counter, 4 writers": counted[4],
            "sequence, 1 writer": numbered[1],
            "sequence, 4 writers": numbered[4],
        },
    )


async def _rows_per_second(connections: Sequence[asyncpg.Connection], statement: str) -> float:
    batches, payloads = 40, [STATE] * 200

    async def write(connection: asyncpg.Connection) -> None:
        for _ in range(batches):
            await connection.execute(statement, payloads)

    began = time.perf_counter()
    await asyncio.gather(*(write(connection) for connection in connections))
    return len(connections) * batches * len(payloads) / (time.perf_counter() - began)
