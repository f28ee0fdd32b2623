"""What a sweep takes from the log, the outbox and the ended keys, and what it never takes."""

from __future__ import annotations

import asyncio
import random
import uuid
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

import pytest
from blake3 import blake3

from omninode.bridge.store.v1 import store_pb2 as pb
from omninode.bridge.store.v1.store_pb2_grpc import StoreServiceStub
from services.chassis.identity import partition_of
from services.store.repository.projection import PROJECTION_LOCK
from services.store.retention import RetentionSettings
from tests.store.sample import ABSENT, PARTITIONS, action, at, commit, event, keys_in, rows, sql, until, until_waiting
from tests.store.sweeping import BRISK, DAY, age, everything, floors, project, register, sweeping, swept, unswept_stub

pytestmark = pytest.mark.asyncio(loop_scope="module")

PARTITION = 3
OPEN, ENDED, REOPENED, OTHER = islice(keys_in(PARTITION), 4)
EMPTY = pb.Blob(digest=blake3(b"").hexdigest(), content=b"")
SHORT = RetentionSettings(
    pause_seconds=0, dedup_hours=1, commit_log_hours=2, outbox_hours=2, finished_hours=4, blob_hours=1
)


async def live(stub: StoreServiceStub, seed: int, size: int = 40) -> None:
    """A history over a few partitions: keys that are open and keys that have ended, some opened again, with and without events,
    some transient.
    """
    chance = random.Random(seed)
    keys = chance.sample([key for partition in (0, 3, 4) for key in islice(keys_in(partition), 8)], 9)
    for _ in range(size):
        if chance.random() < 0.15:
            events = [event(partition_key=chance.choice(keys)) for _ in range(2)]
            await stub.AppendEvents(pb.AppendEventsRequest(request_id=str(chance.getrandbits(64)), events=events))
            continue
        actions = [
            action(str(uuid.UUID(int=chance.getrandbits(128))), events=[event()] * chance.choice([0, 0, 1, 2]))
            for _ in range(chance.choice([1, 1, 1, 2, 5]))
        ]
        key, final, transient = chance.choice(keys), chance.random() < 0.4, chance.random() < 0.3
        await stub.TryCommit(commit(key, actions=actions, final=final, transient_actions=transient))


async def told(database_url: str, seed: int = 1) -> None:
    """A history of three ages, projected to its end."""
    async with unswept_stub(database_url) as stub:
        for hours in (30 * DAY, 5, 0):
            await live(stub, seed)
            seed += 1
            await age(database_url, hours)
    await project(database_url)


async def outcome(stub: StoreServiceStub, request: pb.TryCommitRequest) -> str | None:
    return (await stub.TryCommit(request)).WhichOneof("outcome")


async def test_what_is_within_its_retention_stays_whole(database_url: str) -> None:
    async with unswept_stub(database_url) as stub:
        await live(stub, 7)
    await project(database_url)
    await age(database_url, 5.9)
    before = await everything(database_url)
    assert await swept(database_url) == {}
    assert await everything(database_url) == before


async def test_a_log_that_is_old_goes_and_a_state_that_is_open_stays(database_url: str) -> None:
    async with unswept_stub(database_url) as stub:
        sent = action(events=[event()])
        await stub.TryCommit(commit(OPEN, actions=[sent], state_json='{"a":1}'))
        await project(database_url)
        await age(database_url, 400 * DAY)
        assert await swept(database_url) == {"commits": 1, "events": 1}
        assert await floors(database_url, PARTITION) == (1, 1)
        # The dedup entry of a key that is open stays, however old, without what the other roles needed.
        assert await rows(database_url, "SELECT action_id::text, state, events FROM workflow_commits") == [
            (sent.action_id, None, None)
        ]
        assert await outcome(stub, commit(OPEN, actions=[sent])) == "duplicate"
        assert (await stub.GetState(pb.GetStateRequest(key=OPEN))).state.state_json == '{"a":1}'


async def test_transient_actions_of_an_open_key_go_with_log_and_outbox_and_its_others_stay(database_url: str) -> None:
    settings = RetentionSettings(pause_seconds=0, commit_log_hours=10, outbox_hours=20)
    async with unswept_stub(database_url) as stub:
        kept, gone = action(), [action(events=[event()]), action()]
        first = commit(OPEN, actions=gone, transient_actions=True, expected=ABSENT)
        await stub.TryCommit(first)
        await stub.TryCommit(commit(OPEN, actions=[kept]))
        await project(database_url)
        await age(database_url, 15)
        assert await swept(database_url, settings) == {"commits": 2}
        assert await outcome(stub, first) == "duplicate"
        await age(database_url, 10)
        assert await swept(database_url, settings) == {"events": 1, "dedup": 2}
        assert await rows(database_url, "SELECT action_id::text FROM workflow_commits") == [(kept.action_id,)]
        # By the version it is known still that it took effect.
        assert await outcome(stub, first) == "conflict"
        assert (await stub.TryCommit(commit(OPEN, transient_actions=True, expected=at(2)))).committed.version == 3


async def test_an_action_of_an_ended_key_is_new_again_after_its_retention(database_url: str) -> None:
    async with unswept_stub(database_url) as stub:
        sent, other = action(), action()
        await stub.TryCommit(commit(ENDED, actions=[sent]))
        await stub.TryCommit(commit(ENDED, actions=[other], final=True))
        await project(database_url)
        await age(database_url, 8 * DAY)
        assert await outcome(stub, commit(ENDED, actions=[sent])) == "duplicate"
        assert await swept(database_url) == {"commits": 2, "dedup": 2}
        assert await outcome(stub, commit(ENDED, actions=[sent])) == "committed"
        assert (await stub.GetState(pb.GetStateRequest(key=ENDED))).state.version == 3


async def test_a_key_that_was_opened_again_remembers_until_it_ends_again(database_url: str) -> None:
    async with unswept_stub(database_url) as stub:
        await stub.TryCommit(commit(REOPENED, final=True))
        await project(database_url)
        await age(database_url, 8 * DAY)
        await swept(database_url)
        sent = action()
        await stub.TryCommit(commit(REOPENED, actions=[sent]))
        await project(database_url)
        await age(database_url, 100 * DAY)
        assert (await swept(database_url)) == {"commits": 1}
        assert await outcome(stub, commit(REOPENED, actions=[sent])) == "duplicate"
        await stub.TryCommit(commit(REOPENED, final=True))
        await project(database_url)
        await age(database_url, 8 * DAY)
        assert (await swept(database_url)) == {"commits": 1, "dedup": 2}
        assert await outcome(stub, commit(REOPENED, actions=[sent])) == "committed"


async def test_an_ended_key_goes_behind_its_retention_with_all_that_is_shown_of_it(database_url: str) -> None:
    async with unswept_stub(database_url) as stub:
        await stub.TryCommit(commit(ENDED, final=True, blobs=[EMPTY]))
        await stub.TryCommit(commit(OPEN))
        async with sql(database_url) as connection:
            await until(connection, "count(*) = 2 FROM workflow_projection")
    async with sql(database_url) as connection:
        # Of a rebuild, and of one that was given up.
        await connection.execute(
            "INSERT INTO workflow_projection"
            " SELECT (jsonb_populate_record(shown, jsonb_build_object('generation', generation + made))).*"
            " FROM workflow_projection AS shown CROSS JOIN generate_series(1, 2) AS made"
        )
    await age(database_url, 31 * DAY)
    assert await swept(database_url) == {"commits": 2, "dedup": 1, "keys": 1, "blobs": 1}
    kept = await everything(database_url)
    assert [row[0] for row in kept["workflow_state"]] == [OPEN]
    assert sorted(row[1] for row in kept["workflow_projection"]) == [OPEN] * 3
    assert (kept["blob_references"], kept["blobs"]) == ([], [])
    async with unswept_stub(database_url) as stub:
        assert (await stub.TryCommit(commit(ENDED))).committed.version == 1


async def test_a_key_is_not_deleted_before_the_log_has_let_its_last_commit_go(database_url: str) -> None:
    settings = RetentionSettings(pause_seconds=0, dedup_hours=1, finished_hours=1)
    async with unswept_stub(database_url) as stub:
        await stub.TryCommit(commit(ENDED, final=True))
    await project(database_url)
    await age(database_url, 2)
    assert await swept(database_url, settings) == {}
    await age(database_url, 7 * DAY)
    assert await swept(database_url, settings) == {"commits": 1, "dedup": 1, "keys": 1}


async def test_a_sweep_never_passes_what_the_projection_has_not_read(database_url: str) -> None:
    async with unswept_stub(database_url) as stub:
        for _ in range(3):
            await stub.TryCommit(commit(ENDED, actions=[action(events=[event()])], final=True))
    await age(database_url, 365 * DAY)
    async with sql(database_url) as connection:
        await connection.execute("DELETE FROM projection_watermarks")
        before = await everything(database_url)
        await swept(database_url)
        after = await everything(database_url)
        assert (after["workflow_commits"], len(after["workflow_state"])) == (before["workflow_commits"], 1)
        await connection.execute("INSERT INTO projection_watermarks (partition, watermark) VALUES ($1, 2)", PARTITION)
    assert await swept(database_url) == {"commits": 2, "events": 2, "dedup": 2}
    assert await floors(database_url, PARTITION) == (2, 2)
    await project(database_url)
    assert await swept(database_url) == {"commits": 1, "events": 1, "dedup": 1, "keys": 1}


async def test_a_sweep_never_passes_what_a_consumer_has_not_acknowledged(database_url: str) -> None:
    async with unswept_stub(database_url) as stub:
        for _ in range(4):
            await stub.TryCommit(commit(ENDED, actions=[action(events=[event()])], final=True))
    await project(database_url)
    await age(database_url, 365 * DAY)
    await register(database_url, "relay", PARTITION, 1)
    await register(database_url, "audit", PARTITION, 3)
    before = await everything(database_url)
    assert await swept(database_url) == {"commits": 1, "events": 1, "dedup": 1}
    assert (await everything(database_url))["workflow_commits"] == before["workflow_commits"][1:]
    await register(database_url, "relay", PARTITION, 4)
    assert await swept(database_url) == {"commits": 2, "events": 2, "dedup": 2}
    assert await floors(database_url, PARTITION) == (3, 3)


async def test_a_consumer_that_is_registered_while_a_floor_moves_loses_nothing(database_url: str) -> None:
    async with unswept_stub(database_url) as stub:
        await stub.TryCommit(commit(OPEN, actions=[action(events=[event()])]))
    await project(database_url)
    await age(database_url, 365 * DAY)
    async with sql(database_url) as holder, sql(database_url) as watcher:
        async with holder.transaction():
            await holder.execute("SELECT FROM store_partitions WHERE partition = $1 FOR SHARE", PARTITION)
            sweep = asyncio.ensure_future(swept(database_url))
            await until_waiting(watcher)
            await holder.execute("INSERT INTO outbox_consumers VALUES ('late', $1, 0, now())", PARTITION)
        assert await sweep == {}
    assert await floors(database_url, PARTITION) == (0, 0)


async def test_events_stay_as_long_as_the_outbox_keeps_them_where_that_is_longer(database_url: str) -> None:
    settings = RetentionSettings(pause_seconds=0, commit_log_hours=10, outbox_hours=20)
    async with unswept_stub(database_url) as stub:
        sent = action(events=[event(), event()])
        await stub.TryCommit(commit(ENDED, actions=[sent], final=True, state_json='{"large":1}'))
        await stub.TryCommit(commit(ENDED, final=True))
    await project(database_url)
    await age(database_url, 15)
    assert await swept(database_url, settings) == {"commits": 2}
    # The second, too, though it has none: the outbox is read offset by offset.
    first, second = await rows(
        database_url, "SELECT action_id::text, state, events FROM workflow_commits ORDER BY commit_offset"
    )
    assert (first[0], first[1], first[2] is None, second[1:]) == (sent.action_id, None, False, (None, None))
    await age(database_url, 10)
    async with sweeping(database_url, settings) as running:
        assert await running.sweeper.sweep() == {"events": 1, "dedup": 2}
        assert running.registry.get_sample_value("outbox_events_dropped_total") == 2
        assert running.registry.get_sample_value("retention_deleted_total", {"kind": "dedup"}) == 2


async def test_commits_are_shown_as_long_as_the_log_keeps_them_where_that_is_longer(database_url: str) -> None:
    settings = RetentionSettings(pause_seconds=0, outbox_hours=10)
    async with unswept_stub(database_url) as stub:
        await stub.TryCommit(commit(ENDED, actions=[action(events=[event()])], final=True, state_json='{"a":1}'))
    await project(database_url)
    await age(database_url, 15)
    assert await swept(database_url, settings) == {"events": 1}
    assert await rows(database_url, "SELECT state, events FROM workflow_commits") == [('{"a":1}', None)]
    await age(database_url, 7 * DAY)
    assert await swept(database_url, settings) == {"commits": 1, "dedup": 1}


async def test_appended_events_are_remembered_for_the_dedup_and_go_with_log_and_outbox(database_url: str) -> None:
    async with unswept_stub(database_url) as stub:
        request = pb.AppendEventsRequest(request_id="r", events=[event(partition_key=OPEN)])
        first = await stub.AppendEvents(request)
        await project(database_url)
        await age(database_url, 6.5 * DAY)
        assert await swept(database_url) == {}
        assert await stub.AppendEvents(request) == first
        await age(database_url, DAY)
        assert await swept(database_url) == {"commits": 1, "events": 1, "dedup": 1}
        assert (await stub.AppendEvents(request)).events[0].offset == 1


async def test_a_sweep_that_was_swept_before_does_nothing(database_url: str) -> None:
    await told(database_url)
    assert await swept(database_url, SHORT)
    before = await everything(database_url)
    assert await swept(database_url, SHORT) == {}
    assert await everything(database_url) == before


@pytest.mark.parametrize("seed", range(3))
async def test_small_batches_take_what_one_large_one_does(
    database_url: str, postgres_server: str, migrated_template: str, seed: int
) -> None:
    await told(database_url, seed * 10)
    copy = f"copy_{uuid.uuid4().hex}"
    async with sql(postgres_server) as connection:
        name = urlsplit(database_url).path.removeprefix("/")
        await connection.execute(f"CREATE DATABASE {copy} TEMPLATE {name}")
    other = database_url.replace(name, copy)
    small = await swept(database_url, SHORT.model_copy(update={"batch_size": 3}))
    assert small == await swept(other, SHORT)
    assert small.keys() >= {"dedup", "commits", "keys", "events"}
    assert await everything(database_url) == await everything(other)


async def test_a_sweep_that_broke_off_after_a_floor_moved_is_made_good_by_the_next(database_url: str) -> None:
    async with unswept_stub(database_url) as stub:
        await stub.AppendEvents(pb.AppendEventsRequest(request_id="r", events=[event(partition_key=OPEN)]))
        await stub.TryCommit(commit(OPEN))
    await project(database_url)
    await age(database_url, 365 * DAY)
    async with sweeping(database_url) as running:
        await running.retention.log.advance(PARTITION, 2, 2)
    assert await swept(database_url) == {"dedup": 1, "events": 1}
    assert await rows(database_url, "SELECT key, state FROM workflow_commits") == [(OPEN, None)]


async def test_a_commit_that_opens_a_key_again_meanwhile_wins(database_url: str) -> None:
    async with (
        unswept_stub(database_url) as stub,
        sweeping(database_url) as running,
        sql(database_url) as holder,
        sql(database_url) as watcher,
    ):
        sent = action()
        await stub.TryCommit(commit(ENDED, actions=[sent], final=True))
        await project(database_url)
        await age(database_url, 365 * DAY)
        await running.retention.log.advance(PARTITION, 1, 1)
        held = holder.transaction()
        await held.start()
        # The commit has the key's row, and waits for the end of who refers to the same blob.
        await holder.execute("INSERT INTO blob_references VALUES (decode($1, 'hex'), $2)", EMPTY.digest, ENDED)
        opening = asyncio.ensure_future(stub.TryCommit(commit(ENDED, blobs=[EMPTY])))
        await until_waiting(watcher)
        async with asyncio.timeout(5):
            forgotten = await running.retention.keys.forget(PARTITION, BRISK.dedup, 10)
            finished = await running.retention.keys.finish(PARTITION, BRISK.finished, 10)
            cleared = await running.retention.log.clear(PARTITION, 0, 1, BRISK.dedup)
        assert (forgotten.action_count, finished.key_count, cleared.action_count) == (0, 0, 0)
        await held.rollback()
        assert (await opening).committed.version == 2
        await running.sweeper.sweep()
        assert await outcome(stub, commit(ENDED, actions=[sent])) == "duplicate"


async def test_a_commit_that_meets_a_key_in_its_deletion_waits_and_opens_it_anew(database_url: str) -> None:
    async with unswept_stub(database_url) as stub:
        await stub.TryCommit(commit(ENDED, final=True, blobs=[EMPTY]))
        await project(database_url)
        await age(database_url, 365 * DAY)
        async with sql(database_url) as holder, sql(database_url) as watcher, sweeping(database_url) as running:
            async with holder.transaction():
                # The sweep has the key, and comes to its references.
                await holder.execute("SELECT FROM blob_references FOR UPDATE")
                sweep = asyncio.ensure_future(running.sweeper.sweep())
                await until_waiting(watcher)
                opening = asyncio.ensure_future(stub.TryCommit(commit(ENDED)))
                await until_waiting(watcher, 2)
            assert (await sweep)["keys"] == 1
            assert (await opening).committed.version == 1


async def test_keys_are_deleted_under_the_projections_lock(database_url: str) -> None:
    async with unswept_stub(database_url) as stub:
        await stub.TryCommit(commit(ENDED, final=True))
    await project(database_url)
    await age(database_url, 365 * DAY)
    async with sql(database_url) as rebuilding, sql(database_url) as watcher:
        async with rebuilding.transaction():
            await rebuilding.execute("SELECT pg_advisory_xact_lock_shared($1)", PROJECTION_LOCK)
            sweep = asyncio.ensure_future(swept(database_url))
            await until_waiting(watcher)
            assert len((await everything(database_url))["workflow_state"]) == 1
        assert (await sweep)["keys"] == 1


async def test_lease_events_go_with_the_log_and_the_floor_moves(database_url: str) -> None:
    async with sql(database_url) as connection:
        await connection.execute(
            "INSERT INTO lease_events SELECT number, 'acquired', 'x', 'me', 1, now() - (9.5 - number) * interval '1 day'"
            " FROM generate_series(0, 9) AS number"
        )
        await connection.execute("UPDATE lease_log SET next_offset = 10")
    for size in (2, 100):
        await swept(database_url, BRISK.model_copy(update={"batch_size": size}))
        assert await rows(database_url, "SELECT first_offset FROM lease_log") == [(3,)]
        assert await rows(database_url, "SELECT min(event_offset), count(*) FROM lease_events") == [(3, 7)]


async def test_dead_generations_go_in_batches_with_partition_0_alone(database_url: str) -> None:
    left, asked = [25], list[int]()

    async def drop(limit: int) -> int:
        asked.append(limit)
        count = min(limit, left[0])
        left[0] -= count
        return count

    async with sweeping(database_url, BRISK.model_copy(update={"batch_size": 10}), drop) as running:
        assert await running.sweeper.sweep() == {"projections": 25}
        assert asked == [10, 10, 10]
        running.sweeper.lose(0)
        await running.sweeper.sweep()
        assert len(asked) == 3


async def test_a_sweeper_sweeps_what_it_holds_again_and_again_also_after_a_failure(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = RetentionSettings(pause_seconds=0, sweep_interval_hours=0.00001, first_sweep_seconds=0.01)
    foreign = next(keys_in(5))
    async with (
        unswept_stub(database_url) as stub,
        sweeping(database_url, settings) as running,
        sql(database_url) as watcher,
    ):
        for key in (ENDED, foreign):
            await stub.TryCommit(commit(key, final=True))
        await project(database_url)
        await age(database_url, 365 * DAY)
        assert partition_of(foreign, PARTITIONS) == 5
        running.sweeper.lose(5)
        await watcher.execute("ALTER TABLE projection_watermarks RENAME TO away")
        running.sweeper.start()
        async with asyncio.timeout(10):
            while "not swept to the end" not in caplog.text:
                await watcher.execute("SELECT")
        await watcher.execute("ALTER TABLE away RENAME TO projection_watermarks")
        await until(watcher, "NOT EXISTS (SELECT FROM workflow_state WHERE key = $1)", ENDED)
        assert await rows(database_url, "SELECT key FROM workflow_state") == [(foreign,)]
        await stub.TryCommit(commit(OTHER, final=True))
        await project(database_url)
        await age(database_url, 365 * DAY)
        await until(watcher, "NOT EXISTS (SELECT FROM workflow_state WHERE key = $1)", OTHER)


async def test_nothing_that_is_acknowledged_and_within_retention_goes_while_commits_pass(database_url: str) -> None:
    settings = RetentionSettings(pause_seconds=0, sweep_interval_hours=0.00001, first_sweep_seconds=0.01, batch_size=5)
    await told(database_url)
    sent: list[tuple[str, Any]] = []
    async with unswept_stub(database_url) as stub, sweeping(database_url, settings) as running:
        running.sweeper.start()
        for number in range(60):
            key = list(islice(keys_in(PARTITION), 3))[number % 3]
            request = commit(key, actions=[action(events=[event()])], final=number % 2 == 0)
            assert await outcome(stub, request) == "committed"
            sent.append((key, request))
        for _, request in sent:
            assert await outcome(stub, request) == "duplicate"
    logged = await rows(
        database_url, "SELECT count(*) FROM workflow_commits WHERE state IS NOT NULL AND events IS NOT NULL"
    )
    assert logged[0][0] >= len(sent)
