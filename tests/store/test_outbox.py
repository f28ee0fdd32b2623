"""The outbox over a real PostgreSQL: at least once, in order, and never past what a consumer has acknowledged."""

from __future__ import annotations

from typing import Any

import pytest

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.store.v1 import store_pb2 as pb
from omninode.bridge.store.v1.store_pb2_grpc import StoreServiceStub
from services.chassis.errors import InvalidArgument, NotFound, ResourceExhausted
from services.chassis.feed import FeedSettings
from services.store.domain import Limits
from tests.store.node import store_stub
from tests.store.sample import action, commit, end_lease, event, keys_in, milliseconds, rows, sql
from tests.store.watching import watching

pytestmark = pytest.mark.asyncio(loop_scope="module")
PARTITION = 7


def request(consumer: str = "relay", **fields: Any) -> pb.WatchOutboxRequest:
    return pb.WatchOutboxRequest(consumer=consumer, partition=PARTITION, **fields)


async def put(stub: StoreServiceStub, *names: str, kind: pb.EventKind.ValueType = pb.EVENT_KIND_EVENT) -> pb.Committed:
    """A commit in the partition, with an event of each name."""
    events = [event(event_type=name, kind=kind) for name in names]
    key = next(keys_in(PARTITION))
    return (await stub.TryCommit(commit(key, actions=[action(events=events)]))).committed


async def acknowledge(
    stub: StoreServiceStub, offset: int, consumer: str = "relay", **fields: Any
) -> pb.AckOutboxResponse:
    return await stub.AckOutbox(pb.AckOutboxRequest(consumer=consumer, partition=PARTITION, offset=offset, **fields))


def names_of(items: list[Any]) -> list[str]:
    return [item.event.event_type for item in items]


async def test_a_new_consumer_begins_now_and_what_it_does_not_acknowledge_comes_again(stub: StoreServiceStub) -> None:
    await put(stub, "old")
    async with watching(stub.WatchOutbox(request())) as watch:
        await watch.until("caught_up")
        first = await put(stub, "one")
        await put(stub, "two", "three")
        assert names_of(await watch.until_items(3)) == ["one", "two", "three"]
        assert [item.index for item in watch.items] == [0, 0, 1]
    answer = await acknowledge(stub, first.offset)
    assert answer.acknowledged.next_offset == first.offset + 1
    async with watching(stub.WatchOutbox(request())) as watch:
        assert names_of(await watch.until("caught_up")) == ["two", "three"]


async def test_events_are_shown_in_order_with_their_key_version_and_author(stub: StoreServiceStub) -> None:
    key = next(keys_in(PARTITION))
    async with watching(stub.WatchOutbox(request())) as watch:
        await watch.until("caught_up")
        for version in (1, 2, 3):
            sent = action(events=[event(event_type=f"v{version}")], provenance=pb.Provenance(actor="ada"))
            await stub.TryCommit(commit(key, actions=[sent]))
        shown = await watch.until_items(3)
    assert [(item.key, item.version, item.provenance.actor) for item in shown] == [(key, v, "ada") for v in (1, 2, 3)]
    assert [item.event.partition_key for item in shown] == [key] * 3


async def test_appended_events_are_shown_too_without_a_key(stub: StoreServiceStub) -> None:
    async with watching(stub.WatchOutbox(request())) as watch:
        await watch.until("caught_up")
        appended = event(event_type="appended", partition_key=next(keys_in(PARTITION)))
        answer = await stub.AppendEvents(pb.AppendEventsRequest(request_id="r", events=[appended]))
        (item,) = await watch.until_items(1)
    assert (item.key, item.version, item.HasField("provenance")) == ("", 0, False)
    assert (item.event.event_id, item.offset) == (answer.events[0].event_id, answer.events[0].offset)


async def test_filters_leave_out_other_kinds_types_and_topics(stub: StoreServiceStub) -> None:
    await stub.TryCommit(
        commit(
            next(keys_in(PARTITION)),
            actions=[
                action(
                    events=[
                        event(event_type="a", topic="t"),
                        event(event_type="b", topic="t", kind=pb.EVENT_KIND_INTENT),
                        event(event_type="b", topic="u"),
                    ]
                )
            ],
        )
    )
    for fields, expected in (
        ({}, [0, 1, 2]),
        ({"kind": pb.EVENT_KIND_INTENT}, [1]),
        ({"event_types": ["b"]}, [1, 2]),
        ({"topics": ["t"]}, [0, 1]),
        ({"topics": ["t"], "event_types": ["b"], "kind": pb.EVENT_KIND_EVENT}, []),
    ):
        async with watching(stub.WatchOutbox(request(from_beginning=True, **fields))) as watch:
            shown = await watch.until("caught_up")
        assert [item.index for item in shown] == expected


async def test_a_large_offset_is_shown_in_several_messages_and_comes_again_whole(database_url: str) -> None:
    async with store_stub(database_url, feed=FeedSettings(message_bytes=2000)) as stub:
        async with watching(stub.WatchOutbox(request())) as watch:
            await watch.until("caught_up")
            await put(stub, *(f"e{number}" for number in range(40)))
            partial = await watch.hear()
            assert 0 < len(watch.items) < 40
            # Acknowledging what is complete acknowledges nothing of it.
            assert partial.next_offset == watch.items[0].offset
            cursor = watch.cursor
        async with watching(stub.WatchOutbox(request(cursor=cursor))) as watch:
            shown = await watch.until("caught_up")
        assert names_of(shown) == [f"e{number}" for number in range(40)]
        assert [item.index for item in shown] == list(range(40))


async def test_a_consumer_may_acknowledge_what_its_filters_left_out_and_what_has_no_events(
    stub: StoreServiceStub,
) -> None:
    async with watching(stub.WatchOutbox(request(event_types=["wanted"]))) as watch:
        await watch.until("caught_up")
        await put(stub, "wanted")
        await watch.until_items(1)
    await put(stub, "unwanted")
    quiet = (await stub.TryCommit(commit(next(keys_in(PARTITION))))).committed
    async with watching(stub.WatchOutbox(request(event_types=["wanted"]))) as watch:
        caught_up = await watch.hear()
        while not caught_up.HasField("caught_up"):
            caught_up = await watch.hear()
    assert caught_up.next_offset == quiet.offset + 1
    await acknowledge(stub, caught_up.next_offset - 1)
    (consumer,) = (await stub.ListConsumers(pb.ListConsumersRequest())).consumers
    assert consumer.partitions[PARTITION].lag == 0


async def test_an_acknowledgement_never_goes_back(stub: StoreServiceStub) -> None:
    async with watching(stub.WatchOutbox(request())) as watch:
        await watch.until("caught_up")
    offsets = [(await put(stub, str(number))).offset for number in range(3)]
    assert (await acknowledge(stub, offsets[2])).acknowledged.next_offset == offsets[2] + 1
    assert (await acknowledge(stub, offsets[0])).acknowledged.next_offset == offsets[2] + 1


async def test_an_acknowledgement_is_fenced_by_the_consumers_lease(stub: StoreServiceStub, database_url: str) -> None:
    async with watching(stub.WatchOutbox(request())) as watch:
        await watch.until("caught_up")
    placed = await put(stub, "one")
    taken = pb.AcquireLeaseRequest(name="relay/7", owner="one", ttl=milliseconds(60_000))
    assert (await stub.AcquireLease(taken)).acquired
    guard = pb.Guard(lease="relay/7", epoch=1, condition=pb.GUARD_CONDITION_HELD)
    await end_lease(database_url, "relay/7")
    fenced = await acknowledge(stub, placed.offset, guard=guard)
    assert (fenced.fenced.lease, fenced.fenced.current_epoch) == ("relay/7", 1)
    taken.owner = "two"
    assert (await stub.AcquireLease(taken)).lease.epoch == 2
    fenced = await acknowledge(stub, placed.offset, guard=guard)
    assert fenced.fenced.current_epoch == 2
    guard.epoch = 2
    assert (await acknowledge(stub, placed.offset, guard=guard)).acknowledged.next_offset == placed.offset + 1
    unknown = pb.Guard(lease="relay/never", epoch=1, condition=pb.GUARD_CONDITION_HELD)
    assert (await acknowledge(stub, placed.offset, guard=unknown)).fenced.current_epoch == 0
    unknown.condition = pb.GUARD_CONDITION_NOT_HELD
    assert (await acknowledge(stub, placed.offset, guard=unknown)).HasField("acknowledged")


async def test_consumers_are_listed_with_their_lag_and_forgotten_on_request(stub: StoreServiceStub) -> None:
    for consumer in ("b", "a", "c"):
        async with watching(stub.WatchOutbox(request(consumer))) as watch:
            await watch.until("caught_up")
    offsets = [(await put(stub, str(number))).offset for number in range(4)]
    await acknowledge(stub, offsets[1], "b")
    found: list[pb.Consumer] = []
    token = ""
    while True:
        page = await stub.ListConsumers(pb.ListConsumersRequest(page_size=2, page_token=token))
        found += page.consumers
        token = page.next_page_token
        if not token:
            break
    assert [(consumer.consumer, consumer.lag) for consumer in found] == [("a", 4), ("b", 2), ("c", 4)]
    mine = found[1].partitions[PARTITION]
    assert (mine.partition, mine.next_offset, mine.lag) == (PARTITION, offsets[1] + 1, 2)
    assert mine.HasField("ack_time")
    assert not found[0].partitions[PARTITION].HasField("ack_time")
    assert len(found[0].partitions) == 16
    await stub.DeleteConsumer(pb.DeleteConsumerRequest(consumer="b"))
    assert [c.consumer for c in (await stub.ListConsumers(pb.ListConsumersRequest())).consumers] == ["a", "c"]


async def test_an_unknown_consumer_is_no_consumer(shared_stub: StoreServiceStub) -> None:
    for call in (
        shared_stub.DeleteConsumer(pb.DeleteConsumerRequest(consumer="nobody")),
        shared_stub.AckOutbox(pb.AckOutboxRequest(consumer="nobody", partition=1, offset=0)),
    ):
        with pytest.raises(NotFound) as caught:
            await call
        assert caught.value.reason == errors_pb2.ERROR_REASON_CONSUMER_NOT_FOUND
        assert caught.value.metadata == {"consumer": "nobody"}


async def test_a_consumer_is_registered_for_all_partitions_at_its_first_call(
    stub: StoreServiceStub, database_url: str
) -> None:
    placed = await put(stub, "old")
    async with watching(stub.WatchOutbox(request("whole", from_beginning=True))) as watch:
        assert names_of(await watch.until("caught_up")) == ["old"]
    stored = await rows(
        database_url, "SELECT partition, next_offset FROM outbox_consumers WHERE consumer = 'whole' ORDER BY 1"
    )
    assert stored == [(partition, 0) for partition in range(16)]
    async with watching(stub.WatchOutbox(request("late"))) as watch:
        await watch.until("caught_up")
    ((late,),) = await rows(
        database_url, "SELECT next_offset FROM outbox_consumers WHERE consumer = 'late' AND partition = 7"
    )
    assert late == placed.offset + 1


@pytest.mark.parametrize("fields", [{"partition": 16}, {"cursor": "x"}], ids=str)
async def test_a_refused_watch_registers_nobody(stub: StoreServiceStub, fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        await anext(aiter(stub.WatchOutbox(pb.WatchOutboxRequest(**{"consumer": "ghost", "partition": 1, **fields}))))
    assert not (await stub.ListConsumers(pb.ListConsumersRequest())).consumers


async def test_one_consumer_more_than_the_limit_is_refused_and_those_registered_are_not(database_url: str) -> None:
    async with store_stub(database_url, limits=Limits(consumers=1)) as stub:
        for _ in range(2):
            async with watching(stub.WatchOutbox(request())) as watch:
                await watch.until("caught_up")
        with pytest.raises(ResourceExhausted) as caught:
            await anext(aiter(stub.WatchOutbox(request("other"))))
        assert caught.value.reason == errors_pb2.ERROR_REASON_TOO_MANY_CONSUMERS


async def test_the_outbox_has_a_beginning_of_its_own(stub: StoreServiceStub, database_url: str) -> None:
    placed = [await put(stub, str(number)) for number in range(3)]
    async with sql(database_url) as session:
        await session.execute(
            "UPDATE store_partitions SET first_event_offset = $1 WHERE partition = 7", placed[1].offset
        )
    async with watching(stub.WatchOutbox(request("late", from_beginning=True))) as watch:
        assert names_of(await watch.until("caught_up")) == ["1", "2"]
    commits = pb.WatchCommitsRequest(partitions=[PARTITION], from_beginning=True)
    async with watching(stub.WatchCommits(commits)) as watch:
        assert len(await watch.until("caught_up")) == 3


WATCH_FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"consumer": ""}, "consumer"),
    ({"consumer": "a b"}, "consumer"),
    ({"partition": -1}, "partition"),
    ({"partition": 16}, "partition"),
    ({"kind": 9}, "kind"),
    ({"event_types": [""]}, "event_types[0]"),
    ({"topics": ["x y"]}, "topics[0]"),
    ({"cursor": "x"}, "cursor"),
    ({"cursor": "x", "from_beginning": True}, "from_beginning"),
]


@pytest.mark.parametrize(("fields", "field"), WATCH_FAULTS, ids=str)
async def test_a_bad_watch_is_refused_by_the_name_of_its_field(
    shared_stub: StoreServiceStub, fields: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await anext(
            aiter(shared_stub.WatchOutbox(pb.WatchOutboxRequest(**{"consumer": "c", "partition": 1, **fields})))
        )
    assert [violation.field for violation in caught.value.violations] == [field]


ACK_FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"consumer": "a b"}, "consumer"),
    ({"partition": -1}, "partition"),
    ({"partition": 16}, "partition"),
    ({"partition": 40_000}, "partition"),
    ({"offset": -1}, "offset"),
    ({"offset": 1_000_000}, "offset"),
    ({"guard": pb.Guard(lease="x", epoch=1)}, "guard.condition"),
    ({"guard": pb.Guard(lease="/", epoch=1, condition=pb.GUARD_CONDITION_HELD)}, "guard.lease"),
]


@pytest.mark.parametrize(("fields", "field"), ACK_FAULTS, ids=str)
async def test_a_bad_acknowledgement_is_refused_by_the_name_of_its_field(
    shared_stub: StoreServiceStub, fields: dict[str, Any], field: str
) -> None:
    async with watching(shared_stub.WatchOutbox(pb.WatchOutboxRequest(consumer="c", partition=1))) as watch:
        await watch.until("caught_up")
    with pytest.raises(InvalidArgument) as caught:
        await shared_stub.AckOutbox(pb.AckOutboxRequest(**{"consumer": "c", "partition": 1, "offset": 0, **fields}))
    assert [violation.field for violation in caught.value.violations] == [field]
