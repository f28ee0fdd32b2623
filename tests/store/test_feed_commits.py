"""WatchCommits over a real PostgreSQL: what is shown, in which order, and after what."""

from __future__ import annotations

import uuid
from itertools import islice
from typing import Any

import pytest

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.feed.v1 import feed_pb2
from omninode.bridge.store.v1 import store_pb2 as pb
from omninode.bridge.store.v1.store_pb2_grpc import StoreServiceStub
from services.chassis.errors import InvalidArgument
from services.chassis.feed import FeedSettings
from tests.store.node import store_stub
from tests.store.sample import ANY, action, commit, event, keys_in, new_key, rows, sql, until, until_waiting
from tests.store.watching import QUIET, watching

pytestmark = pytest.mark.asyncio(loop_scope="module")


def places(items: list[Any]) -> list[tuple[int, int, int]]:
    return [(item.partition, item.offset, item.index) for item in items]


async def test_a_commit_is_shown_action_by_action_with_who_did_it(stub: StoreServiceStub) -> None:
    key = new_key()
    sent = [
        action(type="submitted", provenance=pb.Provenance(actor="ada", effect_id="e/1", correlation_id="c")),
        action(type="started", events=[event(payload_json='{"a":1}', headers={"x": "y"})]),
    ]
    sent[0].provenance.occur_time.FromSeconds(1)
    async with watching(stub.WatchCommits(pb.WatchCommitsRequest())) as watch:
        await watch.until("caught_up")
        answer = await stub.TryCommit(commit(key, actions=sent, state_json='{"n": 1}', schema_version=3, final=True))
        one, two = await watch.until_items(2)
    done = answer.committed
    for index, (item, given) in enumerate(zip((one, two), sent, strict=True)):
        assert (item.key, item.version, item.index, item.final) == (key, 1, index, True)
        assert (item.partition, item.offset, item.commit_time) == (done.partition, done.offset, done.commit_time)
        assert (item.action_id, item.type, item.provenance) == (given.action_id, given.type, given.provenance)
        assert (item.state_json, list(item.events)) == ("", [])


async def test_states_and_events_are_shown_to_who_asks_for_them(stub: StoreServiceStub) -> None:
    sent = [action(events=[event()]), action(events=[event(), event(headers={"x": "y"})])]
    async with watching(stub.WatchCommits(pb.WatchCommitsRequest(include_states=True, include_events=True))) as watch:
        await watch.until("caught_up")
        await stub.TryCommit(commit(actions=sent, state_json='{"n": 1}', schema_version=3))
        one, two = await watch.until_items(2)
    assert (one.state_json, one.schema_version) == ('{"n": 1}', 3)
    assert (two.state_json, two.schema_version) == ("", 0)
    assert [len(item.events) for item in (one, two)] == [1, 2]
    assert one.events[0].event_id == str(uuid.uuid5(uuid.UUID(sent[0].action_id), "0"))
    assert dict(two.events[1].headers) == {"x": "y"}


async def test_filters_leave_out_other_collections_keys_types_and_partitions(stub: StoreServiceStub) -> None:
    mine, other = islice(keys_in(3), 2)
    elsewhere, aggregate = next(keys_in(4)), next(keys_in(3, "aggregate"))
    wanted: dict[str, tuple[pb.WatchCommitsRequest, list[tuple[str, str]]]] = {}
    sent = [(key, kind) for kind in ("a", "b") for key in (mine, other, elsewhere, aggregate)]
    for name, request, fits in (
        ("collection", pb.WatchCommitsRequest(collection="aggregate"), lambda key, kind: key == aggregate),
        ("keys", pb.WatchCommitsRequest(keys=[mine, elsewhere]), lambda key, kind: key in (mine, elsewhere)),
        ("types", pb.WatchCommitsRequest(types=["b"]), lambda key, kind: kind == "b"),
        ("partitions", pb.WatchCommitsRequest(partitions=[4]), lambda key, kind: key == elsewhere),
        (
            "all of them",
            pb.WatchCommitsRequest(collection="workflow", keys=[mine], types=["a"], partitions=[3]),
            lambda key, kind: (key, kind) == (mine, "a"),
        ),
    ):
        wanted[name] = (request, [pair for pair in sent if fits(*pair)])
    for key, kind in sent:
        await stub.TryCommit(commit(key, actions=[action(type=kind)]))
    for name, (request, expected) in wanted.items():
        request.from_beginning = True
        async with watching(stub.WatchCommits(request)) as watch:
            shown = [(item.key, item.type) for item in await watch.until("caught_up")]
        assert sorted(shown) == sorted(expected), name


async def test_a_writer_that_took_its_number_first_and_commits_last_is_not_skipped(database_url: str) -> None:
    """The order that a sequence would not give: the second writer's commit must not show before the first one's place is known."""
    first, second = islice(keys_in(5), 2)
    async with (
        store_stub(database_url, feed=FeedSettings(poll_seconds=0.05)) as one,
        store_stub(database_url) as two,
        sql(database_url) as blocker,
        sql(database_url) as observer,
        watching(one.WatchCommits(pb.WatchCommitsRequest())) as watch,
    ):
        await watch.until("caught_up")
        # The first writer has its offset, and waits at the action id that another transaction holds, before its commit.
        held = str(uuid.uuid4())
        transaction = blocker.transaction()
        await transaction.start()
        await blocker.execute(
            "INSERT INTO workflow_commits (partition, commit_offset, action_index, action_id, fingerprint, action_type,"
            " provenance, version, committed_at) VALUES (0, 999999, 0, $1, $2, 'held', '{}', 0, now())",
            held,
            b"f" * 32,
        )
        writing = one.TryCommit(commit(first, actions=[action(held)]))
        await until_waiting(observer)
        behind = two.TryCommit(commit(second))
        # The second waits for the partition's row, which the first holds: it has no offset yet.
        await until_waiting(observer, 2)
        await transaction.rollback()
        offsets = [(await writing).committed.offset, (await behind).committed.offset]
        assert offsets == [0, 1]
        shown = await watch.until_items(2)
        assert [(item.key, item.offset) for item in shown] == [(first, 0), (second, 1)]


async def test_a_watch_goes_on_with_its_cursor_after_every_node_was_restarted(database_url: str) -> None:
    seen: list[Any] = []
    cursor = ""
    for _ in range(3):
        async with store_stub(database_url, feed=QUIET) as stub:
            await stub.BatchTryCommit(pb.BatchTryCommitRequest(items=[commit() for _ in range(20)]))
            request = pb.WatchCommitsRequest(cursor=cursor, from_beginning=not cursor)
            async with watching(stub.WatchCommits(request)) as watch:
                await watch.until("caught_up")
                await stub.TryCommit(commit())
                seen += await watch.until_items(len(watch.items) + 1)
                cursor = watch.cursor
    stored = await rows(
        database_url, "SELECT partition, commit_offset, action_index FROM workflow_commits WHERE key IS NOT NULL"
    )
    assert len(stored) == 63
    assert sorted(places(seen)) == sorted(stored)


async def test_a_commit_of_another_replica_wakes_the_watchers_of_this_one(database_url: str) -> None:
    async with (
        store_stub(database_url, feed=QUIET) as one,
        store_stub(database_url, feed=QUIET) as two,
        watching(one.WatchCommits(pb.WatchCommitsRequest())) as watch,
    ):
        await watch.until("caught_up")
        key = new_key()
        await two.TryCommit(commit(key))
        assert [item.key for item in await watch.until_items(1)] == [key]


async def test_a_lost_listening_connection_is_opened_again_and_what_came_meanwhile_is_shown(database_url: str) -> None:
    async with store_stub(database_url, feed=QUIET) as stub, sql(database_url) as observer:
        listeners = "FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE '%-listener'"
        async with watching(stub.WatchCommits(pb.WatchCommitsRequest())) as watch:
            await watch.until("caught_up")
            await until(observer, f"count(*) = 1 {listeners}")
            (gone,) = await observer.fetch(f"SELECT pid, pg_terminate_backend(pid) {listeners}")
            await stub.TryCommit(commit())
            await watch.until_items(1)
            await until(observer, f"count(*) = 1 {listeners} AND pid <> $1", gone["pid"])
            await stub.TryCommit(commit())
            await watch.until_items(2)


async def test_while_nobody_listens_the_poll_is_the_floor(database_url: str) -> None:
    async with (
        store_stub(database_url, feed=FeedSettings(poll_seconds=0.05)) as stub,
        sql(database_url) as session,
        watching(stub.WatchCommits(pb.WatchCommitsRequest())) as watch,
    ):
        await watch.until("caught_up")
        await session.execute(
            "INSERT INTO workflow_commits (partition, commit_offset, action_index, action_id, fingerprint, action_type,"
            " provenance, key, version, committed_at)"
            " SELECT 0, 0, 0, $1, $2, 'quiet', '[\"\",\"\",null,\"\"]', 'workflow/x', 1, now()",
            uuid.uuid4(),
            b"f" * 32,
        )
        await session.execute("UPDATE store_partitions SET next_offset = 1 WHERE partition = 0")
        assert [item.type for item in await watch.until_items(1)] == ["quiet"]


async def test_a_commit_of_500_actions_is_never_cut_by_the_readers_limit(database_url: str) -> None:
    async with store_stub(database_url, feed=FeedSettings(read_rows=501, message_bytes=20_000)) as stub:
        key = new_key()
        for _ in range(3):
            await stub.TryCommit(commit(key, actions=[action() for _ in range(400)]))
        async with watching(stub.WatchCommits(pb.WatchCommitsRequest(from_beginning=True))) as watch:
            shown = await watch.until("caught_up")
    assert [(item.version, item.index) for item in shown] == [(v, i) for v in (1, 2, 3) for i in range(400)]


async def test_large_states_are_read_a_few_at_a_time_and_all_shown(database_url: str) -> None:
    feed = FeedSettings(read_bytes=300_000, message_bytes=100_000)
    async with store_stub(database_url, feed=feed) as stub:
        state = '{"x":"' + "y" * 90_000 + '"}'
        for number in range(12):
            await stub.TryCommit(commit(f"workflow/{number}", state_json=state))
        request = pb.WatchCommitsRequest(from_beginning=True, include_states=True)
        async with watching(stub.WatchCommits(request)) as watch:
            shown = await watch.until("caught_up")
    assert sorted(item.key for item in shown) == sorted(f"workflow/{number}" for number in range(12))
    assert {item.state_json for item in shown} == {state}


async def test_a_cursor_behind_what_the_log_holds_is_reset_to_the_oldest(
    stub: StoreServiceStub, database_url: str
) -> None:
    first, second = islice(keys_in(2), 2)
    async with watching(stub.WatchCommits(pb.WatchCommitsRequest())) as watch:
        await watch.until("caught_up")
        cursor = watch.cursor
    await stub.TryCommit(commit(first))
    await stub.TryCommit(commit(second))
    async with sql(database_url) as session:
        await session.execute("UPDATE store_partitions SET first_offset = 1 WHERE partition = 2")
    async with watching(stub.WatchCommits(pb.WatchCommitsRequest(cursor=cursor))) as watch:
        response = await watch.hear()
        assert response.reset.reason == feed_pb2.RESET_REASON_RETENTION
        with pytest.raises(StopAsyncIteration):
            await watch.hear()
    async with watching(stub.WatchCommits(pb.WatchCommitsRequest(cursor=watch.cursor))) as watch:
        assert [item.key for item in await watch.until("caught_up")] == [second]


BAD: list[tuple[pb.WatchCommitsRequest, str]] = [
    (pb.WatchCommitsRequest(collection="a/b"), "collection"),
    (pb.WatchCommitsRequest(keys=["no collection"]), "keys[0]"),
    (pb.WatchCommitsRequest(keys=["workflow/x"] * 101), "keys"),
    (pb.WatchCommitsRequest(types=["a b"]), "types[0]"),
    (pb.WatchCommitsRequest(partitions=[-1]), "partitions[0]"),
    (pb.WatchCommitsRequest(partitions=[16]), "partition"),
    (pb.WatchCommitsRequest(cursor="nonsense"), "cursor"),
    (pb.WatchCommitsRequest(cursor="x", from_beginning=True), "from_beginning"),
]


@pytest.mark.parametrize(("request_", "field"), BAD, ids=[field for _, field in BAD])
async def test_a_bad_watch_is_refused_by_the_name_of_its_field(
    shared_stub: StoreServiceStub, request_: pb.WatchCommitsRequest, field: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await anext(aiter(shared_stub.WatchCommits(request_)))
    assert [violation.field for violation in caught.value.violations] == [field]


async def test_a_cursor_of_other_filters_is_refused(shared_stub: StoreServiceStub) -> None:
    async with watching(shared_stub.WatchCommits(pb.WatchCommitsRequest(types=["a"]))) as watch:
        await watch.until("caught_up")
    for other in (pb.WatchCommitsRequest(types=["b"]), pb.WatchCommitsRequest(types=["a"], include_states=True)):
        other.cursor = watch.cursor
        with pytest.raises(InvalidArgument) as caught:
            await anext(aiter(shared_stub.WatchCommits(other)))
        assert caught.value.reason == errors_pb2.ERROR_REASON_CURSOR_MISMATCH


async def test_an_action_with_more_events_than_one_message_takes_is_refused(shared_stub: StoreServiceStub) -> None:
    payload = '{"x":"' + "y" * 200_000 + '"}'
    many = [event(payload_json=payload) for _ in range(45)]
    with pytest.raises(InvalidArgument) as caught:
        await shared_stub.TryCommit(commit(actions=[action(events=many)], expected=ANY))
    assert [violation.field for violation in caught.value.violations] == ["actions[0].events"]
