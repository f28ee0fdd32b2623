"""Events without a state: where they stand, and what the same request does again."""

from __future__ import annotations

import asyncio
import json
import uuid
from itertools import islice

import pytest

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.store.v1 import store_pb2 as pb
from omninode.bridge.store.v1.store_pb2_grpc import StoreServiceStub
from services.chassis.errors import AlreadyExists, BridgeError
from services.chassis.identity import partition_of
from tests.store.node import store_stub
from tests.store.sample import PARTITIONS, commit, counts, event, hold, keys_in, rows, sql, until_waiting

pytestmark = pytest.mark.asyncio(loop_scope="module")


def request(*keys: str, request_id: str = "r") -> pb.AppendEventsRequest:
    """An event for each key, each different."""
    events = [event(partition_key=key, payload_json=f'{{"n": {number}}}') for number, key in enumerate(keys)]
    return pb.AppendEventsRequest(request_id=request_id, events=events)


async def stored(database_url: str) -> list[tuple[int, int, list[int]]]:
    """The log: partition, offset, and the numbers of the events there."""
    found = await rows(database_url, "SELECT partition, commit_offset, events FROM workflow_commits ORDER BY 1, 2")
    return [
        (partition, offset, [json.loads(fields[4])["n"] for fields in json.loads(events or "[]")])
        for partition, offset, events in found
    ]


async def test_events_stand_in_their_keys_partitions_in_request_order(
    stub: StoreServiceStub, database_url: str
) -> None:
    a, b, c = *islice(keys_in(2), 2), next(keys_in(9))
    await stub.TryCommit(commit(a))
    answer = await stub.AppendEvents(request(c, a, c, b))
    assert [(place.partition, place.offset) for place in answer.events] == [(9, 0), (2, 1), (9, 0), (2, 1)]
    assert await stored(database_url) == [(2, 0, []), (2, 1, [1, 3]), (9, 0, [0, 2])]
    ids = [uuid.UUID(place.event_id) for place in answer.events]
    assert len(set(ids)) == 4
    assert all(event_id.version == 5 for event_id in ids)


async def test_the_same_request_again_gets_the_first_answer(stub: StoreServiceStub, database_url: str) -> None:
    asked = request("a", "b", "c")
    first = await stub.AppendEvents(asked)
    await stub.AppendEvents(request("a", "b", request_id="other"))
    before = await counts(database_url)
    assert await stub.AppendEvents(asked) == first
    assert await counts(database_url) == before


async def test_other_events_by_a_known_request_id_are_refused(stub: StoreServiceStub, database_url: str) -> None:
    first = request("a", "b", "c")
    await stub.AppendEvents(first)
    before = await counts(database_url)
    for events in (
        first.events[:2],
        [*first.events, event(partition_key="d")],
        first.events[::-1],
        [event(partition_key="elsewhere")],
    ):
        with pytest.raises(AlreadyExists) as caught:
            await stub.AppendEvents(pb.AppendEventsRequest(request_id="r", events=events))
        assert caught.value.reason == errors_pb2.ERROR_REASON_REQUEST_ID_REUSED
        assert caught.value.metadata == {"request_id": "r"}
    assert await counts(database_url) == before


async def test_equal_requests_at_once_append_once(database_url: str) -> None:
    asked = request("a", "b", "c")
    async with store_stub(database_url) as one, store_stub(database_url) as two:
        answers = await asyncio.gather(*((one, two)[number % 2].AppendEvents(asked) for number in range(16)))
    assert all(answer == answers[0] for answer in answers)
    assert len(await stored(database_url)) == len({partition_of(key, PARTITIONS) for key in "abc"})


async def test_of_two_requests_at_once_with_one_id_and_other_partitions_one_is_refused(
    stub: StoreServiceStub, database_url: str
) -> None:
    await stub.DescribeStore(pb.DescribeStoreRequest())
    keys = [next(keys_in(partition)) for partition in (2, 9)]
    async with sql(database_url) as holder, sql(database_url) as watcher:
        async with holder.transaction():
            await hold(holder, 2, 9)
            asking = [asyncio.create_task(_append(stub, request(key))) for key in keys]
            await until_waiting(watcher, 2)
        answers = [await task for task in asking]
    (refusal,) = [answer for answer in answers if isinstance(answer, BridgeError)]
    assert refusal.reason == errors_pb2.ERROR_REASON_REQUEST_ID_REUSED
    assert [offset for _, offset, _ in await stored(database_url)] == [0]


async def _append(stub: StoreServiceStub, asked: pb.AppendEventsRequest) -> pb.AppendEventsResponse | BridgeError:
    try:
        return await stub.AppendEvents(asked)
    except BridgeError as error:
        return error


async def test_five_hundred_events_are_appended_at_once(stub: StoreServiceStub, database_url: str) -> None:
    answer = await stub.AppendEvents(request(*(f"key {number}" for number in range(500))))
    assert len({place.event_id for place in answer.events}) == 500
    numbers = sorted(number for _, _, events in await stored(database_url) for number in events)
    assert numbers == list(range(500))
