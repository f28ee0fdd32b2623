"""What PreviewRetention counts is what the next sweep takes."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from omninode.bridge.store.v1 import store_pb2, store_pb2_grpc
from omninode.bridge.store.v1 import store_pb2 as pb
from services.chassis.client import ClientSettings, connect
from services.chassis.server import Server, ServerSettings
from services.store.retention import RetentionKind, RetentionSettings
from services.store.servicer.retention import RetentionServicer
from tests.store.sample import action, commit, event, keys_in, sql
from tests.store.sweeping import BRISK, DAY, Sweeping, age, everything, project, register, sweeping, unswept_stub
from tests.store.test_blob import digest_of, upload
from tests.store.test_retention_sweep import SHORT, live

pytestmark = pytest.mark.asyncio(loop_scope="module")

PARTITION = 3
OPEN = "other/open"


@asynccontextmanager
async def previewing(running: Sweeping, settings: RetentionSettings) -> AsyncIterator[store_pb2_grpc.StoreServiceStub]:
    """A stub of a server that shows what this sweeper would take."""
    server = Server(ServerSettings(drain_notice_seconds=0, drain_seconds=5), running.registry)
    part: Any = RetentionServicer
    servicer = part(running.retention.previews, settings)
    service = store_pb2.DESCRIPTOR.services_by_name["StoreService"]
    server.add(store_pb2_grpc.add_StoreServiceServicer_to_server, servicer, service)
    await server.start()
    try:
        async with connect(f"127.0.0.1:{server.port}", ClientSettings(attempts=1)) as channel:
            yield store_pb2_grpc.StoreServiceStub(channel)
    finally:
        await server.stop()


async def preview(stub: store_pb2_grpc.StoreServiceStub) -> dict[str, tuple[int, int]]:
    """Count and held count of each kind that has any."""
    counts = (await stub.PreviewRetention(pb.PreviewRetentionRequest())).counts
    shown = {RetentionKind(count.kind).name.lower(): (count.count, count.held_count) for count in counts}
    return {kind: both for kind, both in shown.items() if both != (0, 0)}


async def test_each_kind_is_shown_in_order_with_its_retention(database_url: str) -> None:
    async with sweeping(database_url) as running, previewing(running, BRISK) as stub:
        counts = (await stub.PreviewRetention(pb.PreviewRetentionRequest())).counts
    assert [(count.kind, count.retention.ToTimedelta()) for count in counts] == [
        (pb.RETENTION_KIND_DEDUP, timedelta(hours=6)),
        (pb.RETENTION_KIND_COMMITS, timedelta(days=7)),
        (pb.RETENTION_KIND_KEYS, timedelta(days=30)),
        (pb.RETENTION_KIND_EVENTS, timedelta(days=7)),
        (pb.RETENTION_KIND_BLOBS, timedelta(days=1)),
    ]


SETTINGS = [
    pytest.param(SHORT, id="all short"),
    pytest.param(SHORT.model_copy(update={"outbox_hours": 100 * DAY}), id="a long outbox"),
    pytest.param(SHORT.model_copy(update={"commit_log_hours": 100 * DAY}), id="a long log"),
    pytest.param(SHORT.model_copy(update={"finished_hours": 100 * DAY}), id="keys shown for long"),
    pytest.param(SHORT.model_copy(update={"batch_size": 3}), id="small batches"),
]


@pytest.mark.parametrize("settings", SETTINGS)
async def test_the_next_sweep_takes_what_the_preview_counts_and_leaves_nothing_to_count(
    database_url: str, settings: RetentionSettings
) -> None:
    chance = random.Random(settings.model_dump_json())
    for seed in range(3):
        async with unswept_stub(database_url) as stub:
            await live(stub, chance.randrange(10**6))
            for name in (b"used", b"by one that ended", b"unused"):
                await stub.PutBlob(upload(name))
            await stub.TryCommit(commit(blob_refs=[digest_of(b"used")]))
            both = [digest_of(name) for name in (b"used", b"by one that ended")]
            await stub.TryCommit(commit(blob_refs=both, final=True))
            await stub.PutBlob(upload(b"released"))
            for names in ({"blob_refs": [digest_of(b"released")]}, {"released_blob_refs": [digest_of(b"released")]}):
                await stub.TryCommit(commit(OPEN, **names))
        async with sql(database_url) as connection:
            await connection.execute("INSERT INTO blob_chunks VALUES (gen_random_uuid(), 0, '', now())")
        await project(database_url)
        await register(database_url, "relay", PARTITION, 10 * (seed + 1))
        await age(database_url, chance.choice([1, 3, 5]))
        before = await everything(database_url)
        # Another one each time: the times of what it has passed do not change in earnest.
        async with sweeping(database_url, settings) as running, previewing(running, settings) as shown:
            counted = {kind: count for kind, (count, _) in (await preview(shown)).items() if count}
            assert await everything(database_url) == before
            taken = {kind: count for kind, count in (await running.sweeper.sweep()).items() if kind != "lease_events"}
            assert taken == counted
            assert not {kind: count for kind, (count, _) in (await preview(shown)).items() if count}


async def test_a_released_blob_is_counted_however_new_unless_a_key_refers_to_it(database_url: str) -> None:
    async with sweeping(database_url) as running, previewing(running, BRISK) as shown:
        async with unswept_stub(database_url) as stub:
            for name in (b"one", b"both"):
                await stub.PutBlob(upload(name))
            both = [digest_of(name) for name in (b"one", b"both")]
            await stub.TryCommit(commit(blob_refs=both[1:]))
            await stub.TryCommit(commit(OPEN, blob_refs=both))
            assert await preview(shown) == {}
            await stub.TryCommit(commit(OPEN, released_blob_refs=both))
        assert await preview(shown) == {"blobs": (1, 0)}
        assert await running.sweeper.sweep() == {"blobs": 1}
        assert await preview(shown) == {}


async def test_what_is_old_and_not_read_is_counted_as_held(database_url: str) -> None:
    async with sweeping(database_url) as running, previewing(running, BRISK) as shown:
        async with unswept_stub(database_url) as stub:
            for number in range(5):
                events = [event()] if number % 2 else []
                await stub.TryCommit(commit(next(keys_in(PARTITION)), actions=[action(events=events)]))
            await project(database_url)
            await age(database_url, 8 * DAY)
            await stub.TryCommit(commit(next(keys_in(PARTITION)), actions=[action(events=[event()])]))
        await register(database_url, "relay", PARTITION, 2)
        assert await preview(shown) == {"commits": (2, 3), "events": (1, 1)}
        await running.sweeper.sweep()
        assert await preview(shown) == {"commits": (0, 3), "events": (0, 1)}
