"""The stamping node: hashing and stamping, one at a time, by batch and by stream."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import asyncpg
from blake3 import blake3

from benchmarks.content import KIB, MIB, contents
from benchmarks.figure import Figure, median
from benchmarks.load import CALLERS, GRPC, ROUNDS, against_bare, drive, stub_of
from benchmarks.server import Measured, bare, mesh
from omninode.bridge.stamping.v1 import stamping_pb2
from omninode.bridge.stamping.v1.stamping_pb2_grpc import StampingServiceStub


@asynccontextmanager
async def beside_bare() -> AsyncIterator[tuple[Measured, StampingServiceStub, Measured, StampingServiceStub]]:
    """The bare handler and the stamping node, each with a stub."""
    with bare() as peer:
        async with mesh("stamping") as nodes:
            ours = nodes.measured("stamping")
            async with (
                stub_of(StampingServiceStub, peer.target) as peer_stub,
                stub_of(StampingServiceStub, ours.target) as our_stub,
            ):
                yield peer, peer_stub, ours, our_stub


async def hash_unary() -> Figure:
    """Hash of 1 KiB against the bare handler."""
    async with beside_bare() as (peer, peer_stub, ours, our_stub):
        requests = [stamping_pb2.HashRequest(content=content) for content in contents(5000)]
        rounds = [
            (
                await drive(peer, peer_stub.Hash, requests, CALLERS),
                await drive(ours, our_stub.Hash, requests, CALLERS),
            )
            for _ in range(ROUNDS + 1)
        ]
    return against_bare("hash_unary", rounds[1:], bar=0.75)


async def create_stamp_unary() -> Figure:
    """CreateStamp of 1 KiB, distinct contents, against the bare handler."""

    def requests(count: int) -> list[stamping_pb2.CreateStampRequest]:
        return [
            stamping_pb2.CreateStampRequest(request_id=uuid.uuid4().hex, content=content, file_path="answer.py")
            for content in contents(count)
        ]

    async with beside_bare() as (peer, peer_stub, ours, our_stub):
        rounds = [
            (
                await drive(peer, peer_stub.CreateStamp, requests(4000), CALLERS),
                await drive(ours, our_stub.CreateStamp, requests(4000), CALLERS),
            )
            for _ in range(ROUNDS + 1)
        ]
    return against_bare("create_stamp_unary", rounds[1:], bar=0.4)


async def batch_create_stamps() -> Figure:
    """BatchCreateStamps, 500 a batch, 4 callers, against plain asyncpg inserting the same rows."""
    batches, size = 24, 500

    def requests() -> list[stamping_pb2.BatchCreateStampsRequest]:
        return [
            stamping_pb2.BatchCreateStampsRequest(
                items=[
                    stamping_pb2.CreateStampRequest(request_id=uuid.uuid4().hex, content=content, file_path="answer.py")
                    for content in contents(size)
                ]
            )
            for _ in range(batches)
        ]

    async with mesh("stamping") as nodes:
        ours = nodes.measured("stamping")
        connection = await asyncpg.connect(nodes.database_url)
        async with stub_of(StampingServiceStub, ours.target) as stub:
            rounds = []
            for _ in range(ROUNDS + 1):
                peer = await _insert_plainly(connection, batches, size)
                rounds.append((peer, await drive(ours, stub.BatchCreateStamps, requests(), 4)))
        await connection.close()
    peer_rate = median([peer for peer, _ in rounds[1:]])
    our_rate = median([our.calls_per_second * size for _, our in rounds[1:]])
    return Figure(
        "batch_create_stamps",
        our_rate,
        "stamps/s",
        f"asyncpg {asyncpg.__version__}, the same rows",
        peer_rate,
        our_rate / peer_rate,
        bar=10_000,
        bar_on_value=True,
        beside={"server CPU us/stamp": median([our.cpu_us_per_call / size for _, our in rounds[1:]])},
    )


async def _insert_plainly(connection: asyncpg.Connection, batches: int, size: int) -> float:
    """Rows a second of the same three tables, one transaction a batch, by the fastest plain way: executemany."""
    prepared = [_rows(size) for _ in range(batches)]
    began = time.perf_counter()
    for stamps, requests, events in prepared:
        async with connection.transaction():
            await connection.executemany(
                "INSERT INTO stamps (namespace, stamp_id, digest, version, op_id, content_type, size_bytes, file_path,"
                " intelligence_data, created_at) VALUES ($1, $2, $3, 1, $4, $5, $6, $7, '{}', $8)",
                stamps,
            )
            await connection.executemany(
                "INSERT INTO stamp_requests (namespace, request_id, fingerprint, stamp_id, created) VALUES ($1, $2, $3, $4, true)",
                requests,
            )
            await connection.executemany(
                "INSERT INTO stamp_events (namespace, stamp_id, kind, occurred_at) VALUES ($1, $2, 'created', $3)",
                events,
            )
    return batches * size / (time.perf_counter() - began)


def _rows(count: int) -> tuple[Sequence[tuple[object, ...]], ...]:
    namespace, now = "omninode.services.metadata", datetime.now(UTC)
    keys = [(uuid.uuid4(), blake3(content).digest()) for content in contents(count)]
    return (
        [(namespace, key, digest, key, "text/x-python", KIB, "answer.py", now) for key, digest in keys],
        [(namespace, key.hex, digest, key) for key, digest in keys],
        [(namespace, key, now) for key, _ in keys],
    )


async def hash_stream() -> Figure:
    """HashStream of 256 MiB in chunks of 256 KiB against a bare stream that discards."""
    size, chunk = 256 * MIB, os.urandom(256 * KIB)

    async def chunks() -> AsyncIterator[stamping_pb2.HashStreamRequest]:
        for _ in range(size // len(chunk)):
            yield stamping_pb2.HashStreamRequest(chunk=chunk)

    grown = []
    async with beside_bare() as (peer, peer_stub, ours, our_stub):
        rounds = []
        for _ in range(ROUNDS + 1):
            discarded = await drive(peer, lambda _: peer_stub.HashStream(chunks()), range(1), 1)
            before = ours.resident_bytes()
            async with _peak(ours) as peak:
                hashed = await drive(ours, lambda _: our_stub.HashStream(chunks()), range(1), 1)
            grown.append(max(peak) - before)
            rounds.append((discarded, hashed))
    ours_rate = median([hashed.calls_per_second for _, hashed in rounds[1:]]) * size / MIB
    peer_rate = median([discarded.calls_per_second for discarded, _ in rounds[1:]]) * size / MIB
    return Figure(
        "hash_stream",
        ours_rate,
        "MiB/s",
        f"bare stream, {GRPC}",
        peer_rate,
        ours_rate / peer_rate,
        bar=0.8,
        beside={"resident memory grown, MiB": max(grown) / MIB},
    )


@asynccontextmanager
async def _peak(server: Measured) -> AsyncIterator[list[int]]:
    """Samples the server's resident memory while the context lasts."""
    samples = [server.resident_bytes()]

    async def sample() -> None:
        while True:
            await asyncio.sleep(0.01)
            samples.append(server.resident_bytes())

    sampler = asyncio.create_task(sample())
    try:
        yield samples
    finally:
        sampler.cancel()
