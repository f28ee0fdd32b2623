"""Projections follow the log: read your writes, one owner at a time, nothing twice, nothing left out."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, cast

import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration
from prometheus_client import CollectorRegistry

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.store.v1 import store_pb2 as pb
from services.chassis.errors import NotFound
from services.store.materializer import Materializer, MaterializerSettings
from services.store.projection import Lag, Reading, Round, ShownProjection
from services.store.reader import ProjectionReader
from services.store.repository.projection import ProjectionRepository
from tests.store.projecting import BY_EAR, NEVER, Replica, replica
from tests.store.sample import PARTITIONS, action, hold, keys_in, new_key, rows, sql, until_waiting

pytestmark = pytest.mark.asyncio(loop_scope="module")

PARTITION = 3
PROJECTION = pb.PROJECTION_SOURCE_PROJECTION
CANONICAL = pb.PROJECTION_SOURCE_CANONICAL
WAITING = 10
"""Seconds that a reader waits at most: no test waits for them to pass."""


@pytest_asyncio.fixture(loop_scope="module")
async def store(database_url: str) -> AsyncIterator[Replica]:
    """A replica on the test's own database; it owns nothing yet."""
    async with replica(database_url) as store:
        yield store


def shown(tag: str = "RUNNING", **fields: Any) -> pb.ProjectionInput:
    return pb.ProjectionInput(tag=tag, **{"namespace": "docs", "indices": {"owner": "ann"}, **fields})


async def projected_rows(database_url: str) -> dict[str, tuple[Any, ...]]:
    """What is shown of each key."""
    return {
        key: tuple(rest)
        for key, *rest in await rows(
            database_url,
            "SELECT key, partition, version, tag, last_action, namespace, created_at, updated_at, final, indices::text, extras"
            " FROM workflow_projection WHERE generation = (SELECT max(generation) FROM projection_watermarks)",
        )
    }


async def expected_rows(database_url: str) -> dict[str, tuple[Any, ...]]:
    """What is to be shown of each key, by its state."""
    expected = {}
    for key, partition, version, projection, *rest in await rows(
        database_url,
        "SELECT key, partition, version, projection, last_action, created_at, updated_at, final FROM workflow_state",
    ):
        last_action, created_at, updated_at, final = rest
        tag, namespace, indices, extras = json.loads(projection) if projection else ("", "", {}, "{}")
        expected[key] = (
            *(partition, version, tag, last_action, namespace, created_at, updated_at, final),
            indices,
            extras,
        )
    return expected


async def assert_shown_as_the_states_say(database_url: str) -> None:
    found = {
        key: (*row[:-2], json.loads(row[-2]), row[-1]) for key, row in (await projected_rows(database_url)).items()
    }
    assert found == await expected_rows(database_url)


async def test_who_holds_a_version_reads_it_from_the_projection(store: Replica) -> None:
    store.own()
    key = new_key()
    for version, tag in enumerate(("PENDING", "RUNNING", "DONE"), 1):
        committed = await store.commit(
            key,
            projection=shown(tag, extras_json='{"a": 1.50}'),
            actions=[action(type=f"to_{tag}")],
            final=version == 3,
        )
        answer = await store.get(key, committed.version, WAITING)
        assert answer.source == PROJECTION
        projection = answer.projection
        assert (projection.key, projection.version, projection.tag) == (key, version, tag)
        assert (projection.last_action, projection.namespace) == (f"to_{tag}", "docs")
        assert (dict(projection.indices), projection.extras_json) == ({"owner": "ann"}, '{"a": 1.50}')
        assert projection.final == (version == 3)
        assert projection.update_time.ToDatetime() == committed.committed_at.replace(tzinfo=None)
        assert projection.create_time.ToDatetime() <= projection.update_time.ToDatetime()
    assert store.sample("projection_fallback_count_total") == 0


async def test_a_commit_without_a_projection_leaves_it_as_it_is(store: Replica) -> None:
    store.own()
    key, silent = new_key(), new_key()
    await store.commit(key, projection=shown("RUNNING"))
    await store.commit(key)
    await store.commit(silent)
    assert (await store.get(key, 2, WAITING)).projection.tag == "RUNNING"
    never_said = (await store.get(silent, 1, WAITING)).projection
    assert (never_said.tag, never_said.namespace, never_said.extras_json) == ("", "", "{}")
    assert not never_said.indices


async def test_a_reader_that_waits_is_woken_by_the_projecting_of_another_replica(database_url: str) -> None:
    # Neither polls within the hour: what ends the wait is a notification.
    async with replica(database_url) as reading, replica(database_url) as owner:
        owner.own()
        key = next(keys_in(PARTITION))
        waiting = asyncio.ensure_future(reading.get(key, 2, 30))
        await owner.commit(key)
        await owner.caught_up()
        assert not waiting.done()
        await owner.commit(key)
        async with asyncio.timeout(WAITING):
            answer = await waiting
        assert (answer.source, answer.projection.version) == (PROJECTION, 2)


class _Shown:
    """Stands for the repository: nothing is shown at the first look, everything from the second on."""

    def __init__(self, while_looking: Callable[[], None] = lambda: None) -> None:
        self._while_looking = while_looking
        self._looks = 0

    async def partition_of(self, _key: str) -> int:
        return PARTITION

    async def find(self, key: str) -> Reading:
        self._looks += 1
        self._while_looking()
        moment = datetime.now(UTC)
        projection = ShownProjection(key, 1, "", "", "", moment, moment, {}, "{}", False)
        return Reading(projection if self._looks > 1 else None, Lag(1, timedelta()))


def reader_of(shown: _Shown, reread_seconds: float) -> ProjectionReader:
    return ProjectionReader(cast(ProjectionRepository, shown), reread_seconds, CollectorRegistry())


async def test_a_reader_that_no_notification_reaches_looks_again_by_itself() -> None:
    async with asyncio.timeout(WAITING):
        _, is_projected = await reader_of(_Shown(), 0.01).read("workflow/a", 1, NEVER)
    assert is_projected


async def test_what_is_projected_while_a_reader_looks_ends_its_wait() -> None:
    reader = reader_of(_Shown(lambda: reader.projected([PARTITION])), NEVER)
    async with asyncio.timeout(WAITING):
        _, is_projected = await reader.read("workflow/a", 1, NEVER)
    assert is_projected


async def test_readers_of_many_keys_and_of_one_at_once_each_get_their_own(store: Replica) -> None:
    keys = list(islice(keys_in(PARTITION), 50)) * 3
    waiting = [asyncio.ensure_future(store.get(key, 1, 30)) for key in keys]
    store.own()
    for key in keys[:50]:
        await store.commit(key, projection=shown(key))
    async with asyncio.timeout(WAITING):
        answers = await asyncio.gather(*waiting)
    assert [answer.projection.tag for answer in answers] == keys


async def test_without_an_owner_the_state_is_answered_and_the_lag_said(store: Replica) -> None:
    key, other = islice(keys_in(PARTITION), 2)
    await store.commit(key, projection=shown("RUNNING"))
    await store.commit(other)
    answer = await store.get(key, 1)
    assert (answer.source, answer.projection.version, answer.projection.tag) == (CANONICAL, 1, "RUNNING")
    assert dict(answer.projection.indices) == {"owner": "ann"}
    assert answer.lag.commits == 2
    assert answer.lag.time.ToTimedelta() > timedelta()
    assert store.sample("projection_fallback_count_total") == 1


async def test_a_wait_ends_in_its_time_with_the_state(store: Replica) -> None:
    key = new_key()
    await store.commit(key)
    answer = await store.stub.GetProjection(
        pb.GetProjectionRequest(key=key, min_version=1, max_wait=Duration(nanos=50_000_000))
    )
    assert answer.source == CANONICAL


async def test_a_version_that_the_key_has_not_come_to_is_answered_by_what_there_is(store: Replica) -> None:
    key = new_key()
    await store.commit(key)
    await store.project_all()
    answer = await store.get(key, 7)
    assert (answer.source, answer.projection.version, answer.lag.commits) == (CANONICAL, 1, 0)


async def test_an_older_version_is_read_without_waiting_for_the_newer(store: Replica) -> None:
    key = new_key()
    await store.commit(key)
    await store.project_all()
    await store.commit(key)
    answer = await store.get(key, 1, 30)
    assert (answer.source, answer.projection.version, answer.lag.commits) == (PROJECTION, 1, 1)


async def test_a_key_without_a_state_is_not_found_and_not_waited_for(store: Replica) -> None:
    await store.project_all()
    async with asyncio.timeout(WAITING):
        with pytest.raises(NotFound) as caught:
            await store.get("workflow/none", 0, 30)
    assert caught.value.reason == errors_pb2.ERROR_REASON_STATE_NOT_FOUND
    assert caught.value.metadata == {"key": "workflow/none"}
    assert store.sample("projection_fallback_count_total") == 0


async def test_appended_events_move_the_watermark_and_show_nothing(store: Replica, database_url: str) -> None:
    ((appended),) = await store.append("anything")
    await store.project_all()
    marks = {mark.partition: mark.watermark for mark in await store.projections.watermarks()}
    assert marks[appended.partition] == 1
    assert await projected_rows(database_url) == {}


async def test_a_commit_of_many_actions_is_applied_whole_by_a_batch_of_one(store: Replica, database_url: str) -> None:
    key = next(keys_in(PARTITION))
    await store.commit(key, actions=[action() for _ in range(5)])
    await store.commit(key)
    await store.projections.begin({PARTITION: 1})
    rounds = [await store.projections.advance({PARTITION: 1}, 1) for _ in range(3)]
    assert [[(done.before, done.watermark) for done in one] for one in rounds] == [[(0, 1)], [(1, 2)], []]
    await assert_shown_as_the_states_say(database_url)


async def test_a_log_longer_than_a_batch_is_projected_to_its_end(database_url: str) -> None:
    async with replica(database_url, BY_EAR.model_copy(update={"batch_size": 2})) as store:
        for key in islice(keys_in(PARTITION), 9):
            await store.commit(key)
        store.own()
        await store.caught_up()
        await assert_shown_as_the_states_say(database_url)
        await store.until_sample("projection_materializer_projections_materialized_total", 9)
        assert store.sample("projection_materializer_batch_size_sum") == 9


async def test_the_poll_finds_what_no_notification_told(database_url: str) -> None:
    async with replica(database_url, MaterializerSettings(poll_seconds=0.01), hearing=False) as store:
        store.own()
        await store.caught_up()
        await store.commit()
        await store.caught_up()
        await store.until_sample("projection_materializer_projections_materialized_total", 1)


async def test_a_stale_owner_changes_nothing_once_the_next_has_begun(store: Replica, database_url: str) -> None:
    key = next(keys_in(PARTITION))
    await store.projections.begin({PARTITION: 1})
    await store.commit(key)
    assert len(await store.projections.advance({PARTITION: 1}, 100)) == 1
    await store.projections.begin({PARTITION: 2})
    await store.commit(key)
    before = await projected_rows(database_url)
    assert await store.projections.advance({PARTITION: 1}, 100) == []
    # Nor does it get in by beginning again.
    await store.projections.begin({PARTITION: 1})
    assert await store.projections.advance({PARTITION: 1}, 100) == []
    assert await projected_rows(database_url) == before
    (done,) = await store.projections.advance({PARTITION: 2}, 100)
    assert (done.before, done.watermark, done.projected) == (1, 2, 1)


async def test_a_round_that_waited_for_another_owner_begins_where_that_one_ended(
    store: Replica, database_url: str
) -> None:
    key, other = islice(keys_in(PARTITION), 2)
    await store.projections.begin({PARTITION: 1})
    await store.commit(key)
    async with sql(database_url) as holder, sql(database_url) as watcher:
        async with holder.transaction():
            await holder.execute("SELECT FROM projection_watermarks WHERE partition = $1 FOR UPDATE", PARTITION)
            late = asyncio.ensure_future(store.projections.advance({PARTITION: 1}, 100))
            await until_waiting(watcher)
            # What the late round's snapshot does not show.
            await store.commit(other)
            await holder.execute("UPDATE projection_watermarks SET watermark = 2 WHERE partition = $1", PARTITION)
        assert await late == []
    assert await rows(database_url, "SELECT watermark FROM projection_watermarks WHERE partition = $1", PARTITION) == [
        (2,)
    ]


async def test_a_round_that_waited_is_fenced_by_whoever_began_meanwhile(store: Replica, database_url: str) -> None:
    await store.projections.begin({PARTITION: 1})
    await store.commit(next(keys_in(PARTITION)))
    async with sql(database_url) as holder, sql(database_url) as watcher:
        async with holder.transaction():
            await holder.execute("UPDATE projection_watermarks SET epoch = 2 WHERE partition = $1", PARTITION)
            late = asyncio.ensure_future(store.projections.advance({PARTITION: 1}, 100))
            await until_waiting(watcher)
        assert await late == []
    assert await projected_rows(database_url) == {}


async def test_a_batch_applied_twice_changes_nothing(store: Replica, database_url: str) -> None:
    keys = list(islice(keys_in(PARTITION), 3))
    for key in (*keys, *keys[:2]):
        await store.commit(key)
    await store.project_all()
    written = "SELECT key, xmin::text, ctid::text FROM workflow_projection ORDER BY key"
    before = await rows(database_url, written)
    assert len(before) == 3
    async with sql(database_url) as connection:
        await connection.execute("UPDATE projection_watermarks SET watermark = 0 WHERE partition = $1", PARTITION)
    (done,) = await store.projections.advance({PARTITION: 1}, 100)
    assert (done.entries, done.projected, done.watermark) == (5, 0, 5)
    assert await rows(database_url, written) == before
    await assert_shown_as_the_states_say(database_url)


async def test_a_watermark_found_lower_than_before_is_counted_and_told(
    store: Replica, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    store.own()
    key = next(keys_in(PARTITION))
    await store.commit(key)
    await store.caught_up()
    assert store.sample("wm_regressions_total") == 0
    async with sql(database_url) as connection:
        await connection.execute("UPDATE projection_watermarks SET watermark = 0 WHERE partition = $1", PARTITION)
    with caplog.at_level(logging.ERROR):
        store.materializer.wake(None)
        await store.caught_up()
        await store.get(key, (await store.commit(key)).version, WAITING)
        await store.until_sample("wm_regressions_total", 1)
    assert [record.getMessage() for record in caplog.records] == ["a watermark went back"]


async def test_under_owners_that_overlap_no_watermark_goes_back_and_nothing_is_left_out(database_url: str) -> None:
    async with replica(database_url) as one, replica(database_url) as two:
        keys = [key for partition in range(PARTITIONS) for key in islice(keys_in(partition), 3)]
        seen: dict[int, int] = {}
        done = asyncio.Event()

        async def watch() -> None:
            while not done.is_set():
                for mark in await one.projections.watermarks():
                    assert mark.watermark >= seen.get(mark.partition, 0)
                    seen[mark.partition] = mark.watermark

        watching = asyncio.ensure_future(watch())
        for epoch in range(1, 7):
            # The one that owned before is not told.
            (one, two)[epoch % 2].own(epoch)
            await asyncio.gather(*((one, two)[number % 2].commit(key) for number, key in enumerate(keys)))
        await two.caught_up()
        done.set()
        await watching
        await assert_shown_as_the_states_say(database_url)
        assert one.sample("wm_regressions_total") == two.sample("wm_regressions_total") == 0


@pytest.mark.parametrize("seed", range(3))
async def test_after_any_commits_the_projections_are_what_the_states_say(database_url: str, seed: int) -> None:
    chance = random.Random(seed)
    keys = [f"{collection}/{number}" for collection in ("workflow", "aggregate") for number in range(6)]
    async with replica(database_url) as store:
        epoch = 0
        for _ in range(25):
            for _ in range(chance.randrange(4)):
                projection = shown(chance.choice("abc"), extras_json=json.dumps({"n": chance.randrange(9)}))
                await store.commit(
                    chance.choice(keys),
                    projection=chance.choice((projection, None)),
                    actions=[action(type=chance.choice(("go", "stop"))) for _ in range(chance.randrange(1, 4))],
                    final=chance.random() < 0.3,
                )
            if chance.random() < 0.3:
                await store.append(*chance.sample(keys, 2))
            epoch += chance.random() < 0.3
            epochs = dict.fromkeys(chance.sample(range(PARTITIONS), 8), epoch)
            await store.projections.begin(epochs)
            await store.projections.advance(epochs, chance.randrange(1, 4))
        await store.project_all(epoch + 1)
        await assert_shown_as_the_states_say(database_url)


class _Scripted:
    """Stands for the repository: each round gives what its turn says, then nothing."""

    def __init__(self, *turns: list[Round] | Exception) -> None:
        self._turns = list(turns)
        self.done = asyncio.Event()

    async def begin(self, _epochs: Mapping[int, int]) -> None:
        pass

    async def advance(self, _epochs: Mapping[int, int], _limit: int) -> list[Round]:
        if not self._turns:
            self.done.set()
            return []
        turn = self._turns.pop(0)
        if isinstance(turn, Exception):
            raise turn
        return turn


def behind(lag_ms: int, number: int = 0) -> Round:
    """A full round, after so many others."""
    return Round(PARTITION, 100 * number, 100 * number + 100, 100, 100, timedelta(milliseconds=lag_ms))


@asynccontextmanager
async def scripted(*turns: list[Round] | Exception) -> AsyncIterator[CollectorRegistry]:
    """The metrics after all turns of a materializer that tries again at once."""
    registry, script = CollectorRegistry(), _Scripted(*turns)
    settings = MaterializerSettings(poll_seconds=NEVER, retry_seconds=0.001)
    materializer = Materializer(cast(ProjectionRepository, script), settings, registry, clock=lambda: 0.0)
    materializer.start()
    materializer.acquire(PARTITION, 1)
    try:
        async with asyncio.timeout(WAITING):
            await script.done.wait()
        yield registry
    finally:
        await materializer.aclose()


async def test_rounds_that_fail_are_told_once_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        async with scripted(OSError("one"), OSError("two"), OSError("three"), [behind(1)]) as registry:
            assert registry.get_sample_value("projection_materializer_projections_materialized_total") == 100
    assert [record.getMessage() for record in caplog.records] == ["not projected"]


async def test_lag_above_the_threshold_is_warned_of_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        async with scripted([behind(250)], [behind(251, 1)], [behind(300, 2)]) as registry:
            # The last round found nothing.
            assert registry.get_sample_value("projection_materializer_wm_lag_ms") == 0
    assert [(record.getMessage(), record.__dict__["lag_ms"]) for record in caplog.records] == [
        ("projections are behind", 251)
    ]


async def test_a_partition_that_is_lost_is_projected_no_more(store: Replica) -> None:
    store.own()
    await store.commit(next(keys_in(PARTITION)))
    await store.caught_up()
    store.materializer.lose(PARTITION)
    await store.commit(next(keys_in(PARTITION)))
    other = next(keys_in(PARTITION + 1))
    await store.get(other, (await store.commit(other)).version, WAITING)
    marks = {mark.partition: mark.lag.commits for mark in await store.projections.watermarks()}
    assert (marks[PARTITION], marks[PARTITION + 1]) == (1, 0)


async def test_a_commit_that_is_not_visible_yet_is_projected_when_it_is(store: Replica, database_url: str) -> None:
    store.own()
    key = next(keys_in(PARTITION))
    async with sql(database_url) as holder, sql(database_url) as watcher:
        async with holder.transaction():
            await hold(holder, PARTITION)
            committing = asyncio.ensure_future(store.commit(key))
            await until_waiting(watcher)
            store.materializer.wake(None)
        version = (await committing).version
    assert (await store.get(key, version, WAITING)).source == PROJECTION
