"""WatchStamps as its watchers meet it: what is shown, by which filters, in which order, and across a restart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from blake3 import blake3

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.stamping.v1 import stamping_pb2 as pb
from omninode.bridge.stamping.v1.stamping_pb2_grpc import StampingServiceStub
from services.chassis.errors import InvalidArgument
from tests.stamping.node import stamping_stub
from tests.stamping.sample import PATIENCE, creation, revocation, watching
from tests.store.sample import sql, until_waiting

CREATED = pb.STAMP_EVENT_KIND_CREATED
REVOKED = pb.STAMP_EVENT_KIND_REVOKED
VALIDATED = pb.STAMP_EVENT_KIND_VALIDATED
BATCH = pb.STAMP_EVENT_KIND_BATCH_PROCESSED

_CREATE = """
WITH counted AS (UPDATE stamp_log SET next_offset = next_offset + 1 RETURNING next_offset - 1 AS place)
INSERT INTO stamp_events (event_offset, namespace, stamp_id, kind, occurred_at)
SELECT place, namespace, stamp_id, 'validated', now() FROM counted, stamps
"""


@pytest.fixture
async def stub(database_url: str) -> AsyncIterator[StampingServiceStub]:
    async with stamping_stub(database_url) as stub:
        yield stub


async def test_a_watcher_sees_creations_and_revocations_with_the_stamp(stub: StampingServiceStub) -> None:
    async with watching(stub) as watch:
        assert await watch.caught_up() == []
        created = (await stub.CreateStamp(creation(request_id="build"))).stamp
        (event,) = await watch.items(1)
        assert (event.kind, event.namespace, event.stamp, event.reason) == (CREATED, created.namespace, created, "")
        assert event.occur_time == created.create_time
        revoked = (await stub.RevokeStamp(revocation("build", reason="withdrawn"))).stamp
        (event,) = await watch.items(1)
        assert (event.kind, event.stamp, event.reason) == (REVOKED, revoked, "withdrawn")
        assert event.occur_time == revoked.revoke_time


async def test_from_the_beginning_every_event_is_shown_in_order_with_the_stamp_as_it_is_now(
    stub: StampingServiceStub,
) -> None:
    await stub.BatchCreateStamps(
        pb.BatchCreateStampsRequest(items=[creation(b"%d" % n, request_id=f"{n}") for n in range(300)])
    )
    revoked = (await stub.RevokeStamp(revocation("7"))).stamp
    async with watching(stub, from_beginning=True, kinds=[CREATED, REVOKED]) as watch:
        events = await watch.caught_up()
    assert [event.kind for event in events] == [CREATED] * 300 + [REVOKED]
    ids = [event.stamp.stamp_id for event in events[:300]]
    assert ids == sorted(set(ids))
    assert [event.stamp for event in events if event.stamp.stamp_id == revoked.stamp_id] == [revoked, revoked]


async def test_a_request_that_finds_its_stamp_or_leaves_a_tombstone_is_no_event(stub: StampingServiceStub) -> None:
    await stub.CreateStamp(creation(request_id="one"))
    await stub.CreateStamp(creation(request_id="two"))
    await stub.RevokeStamp(revocation("one"))
    await stub.RevokeStamp(revocation("never came"))
    async with watching(stub, from_beginning=True) as watch:
        assert [event.kind for event in await watch.caught_up()] == [CREATED]


async def test_a_validation_that_finds_its_stamp_is_shown(stub: StampingServiceStub) -> None:
    stamped = await stub.CreateStamp(creation(embed=True))
    async with watching(stub, kinds=[VALIDATED]) as watch:
        await watch.caught_up()
        await stub.ValidateStamp(pb.ValidateStampRequest(content=b"nobody stamped this", file_path="a.py"))
        await stub.ValidateStamp(pb.ValidateStampRequest(content=stamped.stamped_content, file_path="answer.py"))
        (event,) = await watch.items(1)
    assert (event.kind, event.stamp) == (VALIDATED, stamped.stamp)


async def test_a_batch_is_shown_once_for_each_namespace_with_its_counts(stub: StampingServiceStub) -> None:
    items = [
        creation(b"1", namespace="a"),
        creation(b"2", namespace="b"),
        creation(b"3", namespace="a"),
        creation(b"4", namespace="a", file_path="/"),
        creation(b"5", namespace="no name!"),
        creation(b"6", namespace="c", request_id=""),
    ]
    async with watching(stub, kinds=[BATCH]) as watch:
        await watch.caught_up()
        await stub.BatchCreateStamps(pb.BatchCreateStampsRequest(items=items))
        events = await watch.items(3)
    assert [(event.namespace, event.stamped_count, event.refused_count) for event in events] == [
        ("a", 2, 1),
        ("b", 1, 0),
        ("c", 0, 1),
    ]
    assert not any(event.HasField("stamp") for event in events)
    assert all(event.HasField("occur_time") for event in events)


async def test_filters_leave_out_what_they_do_not_name(stub: StampingServiceStub) -> None:
    docs = (await stub.CreateStamp(creation(b"a", request_id="a", namespace="docs"))).stamp
    await stub.CreateStamp(creation(b"b", namespace="docs"))
    await stub.CreateStamp(creation(b"a", namespace="other"))
    await stub.RevokeStamp(revocation("a", namespace="docs"))

    async def shown(**query: Any) -> list[tuple[int, str, str]]:
        async with watching(stub, from_beginning=True, **query) as watch:
            return [(event.kind, event.namespace, event.stamp.digest[:6]) for event in await watch.caught_up()]

    a, b = docs.digest[:6], blake3(b"b").hexdigest()[:6]
    assert await shown() == [
        (CREATED, "docs", a),
        (CREATED, "docs", b),
        (CREATED, "other", a),
        (REVOKED, "docs", a),
    ]
    assert await shown(namespace="other") == [(CREATED, "other", a)]
    assert await shown(kinds=[REVOKED]) == [(REVOKED, "docs", a)]
    assert await shown(digest=docs.digest.upper()) == [
        (CREATED, "docs", a),
        (CREATED, "other", a),
        (REVOKED, "docs", a),
    ]
    assert await shown(namespace="docs", kinds=[CREATED, CREATED], digest=docs.digest) == [(CREATED, "docs", a)]


async def test_a_restarted_node_goes_on_from_the_cursor_without_a_gap_or_a_repeat(database_url: str) -> None:
    seen: list[pb.StampEvent] = []
    made: list[pb.Stamp] = []
    cursor = ""
    for life in range(3):
        async with stamping_stub(database_url) as stub:
            query = {"cursor": cursor} if cursor else {"from_beginning": True}
            made += [(await stub.CreateStamp(creation(b"%d unwatched" % life))).stamp]
            async with watching(stub, **query) as watch:
                # What the life before left unseen, too.
                seen += await watch.items(2 if life else 1)
                made += [(await stub.CreateStamp(creation(b"%d watched" % life))).stamp]
                seen += await watch.items(1)
                # So the cursor is another place than the log's end.
                made += [(await stub.CreateStamp(creation(b"%d unseen" % life))).stamp]
                cursor = watch.cursor
    async with stamping_stub(database_url) as stub, watching(stub, cursor=cursor) as watch:
        seen += await watch.caught_up()
    assert [event.stamp.stamp_id for event in seen] == [stamp.stamp_id for stamp in made]


async def test_a_writer_that_took_its_number_first_and_commits_late_is_not_skipped(
    stub: StampingServiceStub, database_url: str
) -> None:
    first = (await stub.CreateStamp(creation())).stamp
    async with watching(stub) as watch, sql(database_url) as holder, sql(database_url) as watcher:
        await watch.caught_up()
        async with asyncio.timeout(PATIENCE), holder.transaction():
            await holder.execute(_CREATE)
            creating = asyncio.ensure_future(stub.CreateStamp(creation(b"later")))
            await until_waiting(watcher)
        second = (await creating).stamp
        events = await watch.items(2)
    assert [(event.kind, event.stamp) for event in events] == [(VALIDATED, first), (CREATED, second)]


async def test_a_writer_that_is_taken_back_leaves_no_gap(stub: StampingServiceStub, database_url: str) -> None:
    await stub.CreateStamp(creation())
    async with watching(stub) as watch, sql(database_url) as holder, sql(database_url) as watcher:
        await watch.caught_up()
        transaction = holder.transaction()
        await transaction.start()
        await holder.execute(_CREATE)
        creating = asyncio.ensure_future(stub.CreateStamp(creation(b"later")))
        async with asyncio.timeout(PATIENCE):
            await until_waiting(watcher)
        await transaction.rollback()
        (event,) = await watch.items(1)
        assert event.stamp == (await creating).stamp
    async with sql(database_url) as connection:
        assert await connection.fetchval("SELECT array_agg(event_offset ORDER BY event_offset) FROM stamp_events") == [
            0,
            1,
        ]


async def test_watchers_of_two_replicas_see_the_same_events_in_the_same_order(database_url: str) -> None:
    async with (
        stamping_stub(database_url) as one,
        stamping_stub(database_url) as two,
        watching(one, kinds=[CREATED]) as here,
        watching(two, kinds=[CREATED]) as there,
    ):
        await asyncio.gather(here.caught_up(), there.caught_up())
        await asyncio.gather(*(replica.CreateStamp(creation(b"%d" % n)) for n in range(60) for replica in (one, two)))
        seen_here, seen_there = await asyncio.gather(here.items(60), there.items(60))
    assert seen_here == seen_there
    assert len({event.stamp.stamp_id for event in seen_here}) == 60


@pytest.mark.parametrize(
    ("field", "query"),
    [
        ("namespace", {"namespace": ""}),
        ("namespace", {"namespace": "a/b"}),
        ("kinds[0]", {"kinds": [pb.STAMP_EVENT_KIND_UNSPECIFIED]}),
        ("kinds[1]", {"kinds": [CREATED, cast(pb.StampEventKind.ValueType, 99)]}),
        ("digest", {"digest": "a" * 63}),
        ("digest", {"digest": "g" * 64}),
        ("cursor", {"cursor": "made up"}),
    ],
    ids=str,
)
async def test_a_bad_filter_is_refused_by_its_name(stub: StampingServiceStub, field: str, query: Any) -> None:
    async with watching(stub, **query) as watch:
        with pytest.raises(InvalidArgument) as caught:
            await watch.next()
    assert [violation.field for violation in caught.value.violations] == [field]


async def test_the_beginning_beside_a_cursor_is_refused(stub: StampingServiceStub) -> None:
    async with watching(stub) as watch:
        await watch.caught_up()
        cursor = watch.cursor
    async with watching(stub, cursor=cursor, from_beginning=True) as watch:
        with pytest.raises(InvalidArgument) as caught:
            await watch.next()
    assert [violation.field for violation in caught.value.violations] == ["from_beginning"]


@pytest.mark.parametrize(
    "other", [{}, {"namespace": "b"}, {"namespace": "a", "kinds": [REVOKED]}, {"digest": "a" * 64}], ids=str
)
async def test_a_cursor_of_other_filters_is_refused(stub: StampingServiceStub, other: Any) -> None:
    async with watching(stub, namespace="a", kinds=[CREATED, REVOKED]) as watch:
        await watch.caught_up()
        cursor = watch.cursor
    # The order of kinds is no filter.
    async with watching(stub, namespace="a", kinds=[REVOKED, CREATED], cursor=cursor) as watch:
        assert await watch.caught_up() == []
    async with watching(stub, cursor=cursor, **other) as watch:
        with pytest.raises(InvalidArgument) as caught:
            await watch.next()
    assert caught.value.reason == errors_pb2.ERROR_REASON_CURSOR_MISMATCH
