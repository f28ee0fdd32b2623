"""Projections built anew: whole and at once, beside commits and readers; and nothing left of a rebuild that broke off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import timedelta

import pytest
import pytest_asyncio

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.store.v1 import store_pb2 as pb
from services.chassis.errors import FailedPrecondition
from services.store.domain import LeaseRequest
from services.store.projection import REBUILD_LEASE, Phase, Progress, RebuildRunning
from services.store.rebuild import Rebuilder
from services.store.repository.projection import PROJECTION_LOCK
from tests.store.projecting import BY_EAR, Replica, replica
from tests.store.sample import PARTITIONS, end_lease, keys_in, new_key, rows, sql, until, until_waiting
from tests.store.test_materializer import assert_shown_as_the_states_say

pytestmark = pytest.mark.asyncio(loop_scope="module")

SMALL = BY_EAR.model_copy(update={"rebuild_chunk": 5})
KEYS = [f"workflow/{number:03}" for number in range(40)]
GENERATIONS = "SELECT generation, count(*) FROM workflow_projection GROUP BY 1 ORDER BY 1"


@pytest_asyncio.fixture(loop_scope="module")
async def store(database_url: str) -> AsyncIterator[Replica]:
    """A replica in chunks of five keys, with forty of them, all projected; its materializer owns nothing yet."""
    async with replica(database_url, SMALL) as store:
        await asyncio.gather(*(store.commit(key, projection=pb.ProjectionInput(tag="OLD")) for key in KEYS))
        await store.project_all()
        yield store


def rebuilder(store: Replica, owner: str = "one") -> Rebuilder:
    """Says each step, because its clock runs fast."""
    ticks = iter(range(10**9))
    settings = SMALL.model_copy(update={"rebuild_lease_seconds": 3600})
    return Rebuilder(store.generations, store.leases, settings, lambda: owner, clock=lambda: float(next(ticks)))


async def rebuilt(store: Replica) -> list[Progress]:
    return [progress async for progress in rebuilder(store).rebuild()]


async def spoil(database_url: str) -> None:
    """Makes what is shown wrong in every way: what a rebuild is for."""
    async with sql(database_url) as connection:
        await connection.execute("UPDATE workflow_projection SET tag = 'WRONG', version = version + 100")
        await connection.execute("DELETE FROM workflow_projection WHERE key < 'workflow/007'")
        await connection.execute(
            "INSERT INTO workflow_projection SELECT generation, 'workflow/ghost', partition, 1, '', '', '', now(), now(), false,"
            " '{}', '{}' FROM workflow_projection LIMIT 1"
        )


async def test_a_rebuild_shows_what_the_states_say_and_drops_what_was_shown(store: Replica, database_url: str) -> None:
    await spoil(database_url)
    steps = await rebuilt(store)
    await assert_shown_as_the_states_say(database_url)
    assert await rows(database_url, GENERATIONS) == [(1, len(KEYS))]
    assert await rows(database_url, "SELECT DISTINCT generation FROM projection_watermarks") == [(1,)]
    phases = [step.phase for step in steps]
    assert sorted(phases) == phases
    assert set(phases) == set(Phase)
    building = [step for step in steps if step.phase is Phase.BUILDING]
    assert [step.done for step in building] == [*range(0, len(KEYS) + 1, 5), len(KEYS)]
    assert {step.total for step in building} == {len(KEYS)}
    assert all(step.done <= step.total for step in steps)
    assert steps[-1] == (Phase.DONE, len(KEYS), len(KEYS))


async def test_the_stream_says_each_phase_and_the_next_rebuild_may_begin(store: Replica, database_url: str) -> None:
    for generation in (1, 2):
        stream = store.stub.RebuildProjection(pb.RebuildProjectionRequest())
        phases = [response.phase async for response in stream]
        assert sorted(set(phases)) == [
            pb.REBUILD_PHASE_BUILDING,
            pb.REBUILD_PHASE_CATCHING_UP,
            pb.REBUILD_PHASE_CLEANING,
            pb.REBUILD_PHASE_DONE,
        ]
        assert await rows(database_url, GENERATIONS) == [(generation, len(KEYS))]


async def test_between_two_steps_of_a_phase_a_tenth_of_a_second_passes(store: Replica) -> None:
    still = Rebuilder(store.generations, store.leases, SMALL, lambda: "one", clock=lambda: 0.0)
    assert [progress.phase async for progress in still.rebuild()] == list(Phase)


async def test_what_is_committed_meanwhile_is_shown_after_the_swap(store: Replica, database_url: str) -> None:
    added = [f"aggregate/{number:03}" for number in range(30)]
    async for progress in rebuilder(store).rebuild():
        if progress.phase is Phase.BUILDING and progress.done == 10:
            # Behind the walk and before it, of keys known and new, and more than a chunk in one partition.
            await asyncio.gather(*(store.commit(key, projection=pb.ProjectionInput(tag="NEW")) for key in KEYS + added))
            for _ in range(7):
                await store.commit(KEYS[0])
        if progress.phase is Phase.CATCHING_UP:
            await store.commit(KEYS[1])
    await store.caught_up()
    await assert_shown_as_the_states_say(database_url)
    assert await rows(database_url, GENERATIONS) == [(1, len(KEYS) + len(added))]


async def test_readers_and_writers_see_no_gap_while_projections_are_rebuilt(store: Replica, database_url: str) -> None:
    store.own(2)
    done = asyncio.Event()
    versions = dict.fromkeys(KEYS, 1)

    async def count() -> int:
        looks = 0
        while not done.is_set():
            answer = await store.stub.CountProjections(pb.CountProjectionsRequest())
            assert answer.total == len(KEYS)
            page = await store.stub.ListProjections(pb.ListProjectionsRequest(page_size=1000))
            assert [projection.key for projection in page.projections] == KEYS
            looks += 1
        return looks

    async def read() -> int:
        looks = 0
        while not done.is_set():
            key = KEYS[looks % len(KEYS)]
            version = versions[key]
            answer = await store.get(key, version, 30)
            assert answer.source == pb.PROJECTION_SOURCE_PROJECTION
            assert answer.projection.version >= version
            looks += 1
        return looks

    async def write() -> int:
        looks = 0
        while not done.is_set():
            key = KEYS[looks * 7 % len(KEYS)]
            versions[key] = (await store.commit(key, projection=pb.ProjectionInput(tag=str(looks)))).version
            looks += 1
        return looks

    async def watch() -> int:
        seen = dict.fromkeys(range(PARTITIONS), 0)
        looks = 0
        while not done.is_set():
            for mark in await store.projections.watermarks():
                assert mark.watermark >= seen[mark.partition]
                seen[mark.partition] = mark.watermark
            looks += 1
        return looks

    busy = [asyncio.ensure_future(work()) for work in (count, read, write, watch)]
    for _ in range(4):
        await rebuilt(store)
    done.set()
    async with asyncio.timeout(30):
        assert all(await asyncio.gather(*busy))
    await store.caught_up()
    await assert_shown_as_the_states_say(database_url)
    assert await rows(database_url, GENERATIONS) == [(4, len(KEYS))]
    assert store.sample("wm_regressions_total") == 0


async def test_a_materializer_that_waited_for_the_swap_goes_on_in_the_new_generation(
    store: Replica, database_url: str
) -> None:
    key = next(keys_in(3))
    await store.commit(key)
    async with sql(database_url) as holder, sql(database_url) as watcher:
        async with holder.transaction():
            await holder.execute("UPDATE projection_watermarks SET generation = 7")
            late = asyncio.ensure_future(store.projections.advance({3: 1}, 100))
            await until_waiting(watcher)
        assert len(await late) == 1
    assert await rows(database_url, "SELECT generation FROM workflow_projection WHERE key = $1", key) == [(7,)]


async def test_a_partition_that_nobody_began_yet_is_swapped_too(database_url: str) -> None:
    async with replica(database_url, SMALL) as store:
        await store.commit(KEYS[0])
        await rebuilt(store)
        await assert_shown_as_the_states_say(database_url)
        await store.commit(KEYS[0])
        await store.project_all()
        await assert_shown_as_the_states_say(database_url)
        assert await rows(database_url, GENERATIONS) == [(1, 1)]


async def test_a_reader_that_waits_is_woken_by_the_swap(store: Replica) -> None:
    version = (await store.commit(KEYS[0])).version
    waiting = asyncio.ensure_future(store.get(KEYS[0], version, 30))
    done, _ = await asyncio.wait([waiting], timeout=0.1)
    assert not done
    await rebuilt(store)
    async with asyncio.timeout(10):
        assert (await waiting).source == pb.PROJECTION_SOURCE_PROJECTION


async def test_a_caller_that_leaves_ends_the_rebuild_and_nothing_is_left_of_it(
    store: Replica, database_url: str
) -> None:
    before = await rows(database_url, "SELECT * FROM workflow_projection ORDER BY key")
    async with sql(database_url) as holder, sql(database_url) as watcher:
        async with holder.transaction():
            # Holds the rebuild between two of its steps.
            await holder.execute("SELECT pg_advisory_xact_lock($1)", PROJECTION_LOCK)
            stream = store.stub.RebuildProjection(pb.RebuildProjectionRequest())
            reading = asyncio.ensure_future(stream.read())
            await until_waiting(watcher)
            stream.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
        await until(watcher, "count(*) = 0 FROM leases WHERE expires_at > clock_timestamp()")
    assert await rows(database_url, "SELECT * FROM workflow_projection ORDER BY key") == before
    await rebuilt(store)


async def test_what_a_rebuild_that_is_ended_had_built_is_dropped_at_once(store: Replica, database_url: str) -> None:
    async with aclosing(rebuilder(store).rebuild()) as rebuild:
        async for progress in rebuild:
            if progress.done == 20:
                break
        assert await rows(database_url, GENERATIONS) == [(0, len(KEYS)), (1, 20)]
    assert await rows(database_url, GENERATIONS) == [(0, len(KEYS))]
    assert await rows(database_url, "SELECT count(*) FROM leases WHERE expires_at > clock_timestamp()") == [(0,)]
    await assert_shown_as_the_states_say(database_url)


async def test_of_two_rebuilds_at_once_the_later_is_refused_with_the_owner_of_the_first(store: Replica) -> None:
    first = rebuilder(store, "first").rebuild()
    async with aclosing(first):
        await anext(first)
        with pytest.raises(FailedPrecondition) as caught:
            await store.stub.RebuildProjection(pb.RebuildProjectionRequest()).read()
        assert caught.value.reason == errors_pb2.ERROR_REASON_REBUILD_RUNNING
        assert caught.value.metadata == {"owner": "first"}
        assert [progress.phase async for progress in first][-1] is Phase.DONE


async def test_a_rebuild_whose_lease_was_lost_changes_nothing_more(store: Replica, database_url: str) -> None:
    await spoil(database_url)
    slow = rebuilder(store, "slow").rebuild()
    async for progress in slow:
        if progress.done == 20:
            break
    await end_lease(database_url, REBUILD_LEASE)
    steps = [step async for step in rebuilder(store, "next").rebuild()]
    assert steps[-1].phase is Phase.DONE
    after = await rows(database_url, "SELECT generation, key, version, tag FROM workflow_projection ORDER BY 1, 2")
    with pytest.raises(RebuildRunning) as caught:
        await anext(slow)
    assert caught.value.metadata == {"owner": "next"}
    assert (
        await rows(database_url, "SELECT generation, key, version, tag FROM workflow_projection ORDER BY 1, 2") == after
    )
    await assert_shown_as_the_states_say(database_url)


async def test_what_a_crashed_rebuild_left_is_dropped_when_its_lease_has_ended(
    store: Replica, database_url: str
) -> None:
    assert await store.generations.drop_dead_generations(100) == 0
    request = LeaseRequest(name=REBUILD_LEASE, owner="crashed", ttl=timedelta(hours=1))
    lease = await store.leases.acquire(request)
    generation = await store.generations.new_generation(lease)
    assert await store.generations.build(lease, generation, "", 30) == (30, KEYS[29])
    assert await store.generations.drop_dead_generations(100) == 0
    assert await rows(database_url, GENERATIONS) == [(0, len(KEYS)), (generation, 30)]
    await end_lease(database_url, REBUILD_LEASE)
    assert [await store.generations.drop_dead_generations(20) for _ in range(3)] == [20, 10, 0]
    assert await rows(database_url, GENERATIONS) == [(0, len(KEYS))]


async def test_what_a_crashed_rebuild_left_is_no_part_of_the_next(store: Replica, database_url: str) -> None:
    lease = await store.leases.acquire(
        LeaseRequest(name=REBUILD_LEASE, owner="crashed", ttl=timedelta(milliseconds=100))
    )
    async with sql(database_url) as connection:
        await connection.execute(
            "INSERT INTO workflow_projection SELECT 1, 'workflow/ghost' || number, 0, 1, '', '', '', now(), now(), false,"
            " '{}', '{}' FROM generate_series(1, 12) AS number"
        )
    await end_lease(database_url, lease.name)
    async for progress in rebuilder(store).rebuild():
        if progress == (Phase.BUILDING, 0, len(KEYS)):
            assert await rows(database_url, GENERATIONS) == [(0, len(KEYS))]
    await assert_shown_as_the_states_say(database_url)
    assert [count for _, count in await rows(database_url, GENERATIONS)] == [len(KEYS)]


async def test_a_step_that_holds_the_lease_keeps_the_dead_generations_from_being_dropped(
    store: Replica, database_url: str
) -> None:
    """It may be the swap that makes them live, and has outlasted its lease."""
    await store.leases.acquire(LeaseRequest(name=REBUILD_LEASE, owner="slow", ttl=timedelta(milliseconds=100)))
    async with sql(database_url) as step:
        await step.execute(
            "INSERT INTO workflow_projection SELECT 1, 'a/b', 0, 1, '', '', '', now(), now(), false, '{}', '{}'"
        )
        async with step.transaction():
            await step.execute("SELECT FROM leases WHERE name = $1 FOR SHARE", REBUILD_LEASE)
            await until(step, "expires_at <= clock_timestamp() FROM leases WHERE name = $1", REBUILD_LEASE)
            assert await store.generations.drop_dead_generations(100) == 0
    assert await store.generations.drop_dead_generations(100) == 1


async def test_what_is_projected_until_the_swap_is_in_the_new_generation_too(store: Replica, database_url: str) -> None:
    key = next(keys_in(3, "late"))
    rebuild = rebuilder(store).rebuild()
    async for progress in rebuild:
        if progress.phase is Phase.CATCHING_UP:
            break
    async with sql(database_url) as materializer, sql(database_url) as watcher:
        async with materializer.transaction():
            await materializer.execute("SELECT FROM projection_watermarks WHERE partition = 3 FOR UPDATE")
            swapping = asyncio.ensure_future(anext(rebuild))
            await until_waiting(watcher)
            committed = await store.commit(key)
            await materializer.execute(
                "UPDATE projection_watermarks SET watermark = $1 WHERE partition = 3", committed.offset + 1
            )
        assert (await swapping).phase is Phase.CLEANING
        async for _ in rebuild:
            pass
    await assert_shown_as_the_states_say(database_url)


async def test_no_key_is_copied_while_keys_are_deleted(store: Replica, database_url: str) -> None:
    """A chunk that waited for the deletion of a key does not bring it back."""
    gone = KEYS[2]
    rebuild = rebuilder(store).rebuild()
    async with sql(database_url) as retention, sql(database_url) as watcher:
        await anext(rebuild)
        async with retention.transaction():
            await retention.execute("SELECT pg_advisory_xact_lock($1)", PROJECTION_LOCK)
            step = asyncio.ensure_future(anext(rebuild))
            await until_waiting(watcher)
            await retention.execute("DELETE FROM workflow_state WHERE key = $1", gone)
            await retention.execute("DELETE FROM workflow_projection WHERE key = $1", gone)
        assert (await step).phase is Phase.BUILDING
        async for _ in rebuild:
            pass
    await assert_shown_as_the_states_say(database_url)
    assert await rows(database_url, GENERATIONS) == [(1, len(KEYS) - 1)]


async def test_an_empty_store_is_rebuilt(database_url: str) -> None:
    async with replica(database_url, SMALL) as store:
        assert [(step.done, step.total) for step in await rebuilt(store)][-1] == (0, 0)
        key = new_key()
        store.own()
        assert (await store.get(key, (await store.commit(key)).version, 10)).source == pb.PROJECTION_SOURCE_PROJECTION
