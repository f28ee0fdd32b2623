"""The reducer contract as its callers meet it: real stub, real socket, real store, real PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.reducer.v1 import reducer_pb2 as pb
from omninode.bridge.reducer.v1.reducer_pb2_grpc import ReducerServiceStub
from omninode.bridge.store.v1 import store_pb2
from omninode.bridge.store.v1.store_pb2_grpc import StoreServiceStub
from services.chassis.call_context import CORRELATION_METADATA
from services.chassis.client import connect
from services.chassis.coalesce import QueueFull
from services.chassis.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from services.reducer.domain import Limits
from tests.reducer.node import QUICK, reducer_stub
from tests.reducer.workflow import SUBMITTED, WALK, message
from tests.store.node import store_node

KEY = "workflow/build-17"


@pytest.fixture
async def store_target(database_url: str) -> AsyncIterator[str]:
    async with store_node(database_url) as target:
        yield target


@pytest.fixture
async def stub(store_target: str) -> AsyncIterator[ReducerServiceStub]:
    async with reducer_stub(store_target) as stub:
        yield stub


@pytest.fixture
async def lonely() -> AsyncIterator[ReducerServiceStub]:
    """A node whose store is away: what it refuses, it refuses by itself, and nothing can have been written."""
    async with reducer_stub("127.0.0.1:1") as stub:
        yield stub


async def reduce(stub: ReducerServiceStub, type_: str, *payload: Any, **fields: Any) -> pb.ReduceResponse:
    return await stub.Reduce(pb.ReduceRequest(action=message(type_, *payload, **fields)))


async def state_of(store_target: str, key: str = KEY) -> store_pb2.State:
    async with connect(store_target) as channel:
        return (await StoreServiceStub(channel).GetState(store_pb2.GetStateRequest(key=key))).state


def fields_of(error: Any) -> list[str]:
    return [violation.field for violation in getattr(error, "violations", None) or error.field_violations]


async def test_an_action_takes_effect_and_its_answer_shows_state_events_and_place(
    stub: ReducerServiceStub, store_target: str
) -> None:
    number = uuid.uuid4()
    folded = (await reduce(stub, "submitted", action_id=str(number))).committed
    kept = await state_of(store_target)
    assert folded.version == folded.commit.version == kept.version == 1
    assert folded.state_json == kept.state_json
    assert (folded.commit.partition, folded.commit.offset) == (kept.partition, 0)
    assert folded.commit.HasField("commit_time")
    (event,) = folded.events
    assert (event.event_type, event.topic, event.partition_key) == ("STATE_TRANSITION", "workflow", KEY)
    assert event.kind == store_pb2.EVENT_KIND_EVENT
    assert event.event_id == str(uuid.uuid5(number, "0"))


async def test_an_action_sent_again_gets_the_place_and_the_events_of_the_first(stub: ReducerServiceStub) -> None:
    number = str(uuid.uuid4())
    first = (await reduce(stub, "submitted", action_id=number)).committed
    again = (await reduce(stub, "submitted", action_id=number)).duplicate
    assert again == pb.Known(version=1, events=first.events, commit=first.commit)


async def test_sixteen_callers_of_one_action_see_one_effect(stub: ReducerServiceStub, store_target: str) -> None:
    request = pb.ReduceRequest(action=message("submitted"))
    answers = await asyncio.gather(*(stub.Reduce(request) for _ in range(16)))
    assert sorted(answer.WhichOneof("outcome") or "" for answer in answers) == ["committed"] + ["duplicate"] * 15
    assert (await state_of(store_target)).version == 1


async def test_a_batch_is_answered_in_request_order_each_with_its_own_outcome(
    stub: ReducerServiceStub, store_target: str
) -> None:
    known = message("submitted", key="workflow/known")
    await stub.Reduce(pb.ReduceRequest(action=known))
    guard = store_pb2.Guard(lease="nobody", epoch=1, condition=store_pb2.GUARD_CONDITION_HELD)
    response = await stub.BatchReduce(
        pb.BatchReduceRequest(
            actions=[
                *(message(type_, payload) for type_, payload in WALK),
                known,
                message("started", key="workflow"),
                message("started", key="workflow/known", guards=[guard]),
                message("completed", key="workflow/known"),
                message("started", reducer="stampings"),
                message("submitted", {**SUBMITTED, "size_bytes": "27"}, key="workflow/other"),
            ]
        )
    )
    *walked, duplicate, malformed, fenced, illegal, unknown, unfit = response.results
    assert [result.committed.version for result in walked] == [1] * len(WALK)
    assert json.loads(walked[0].committed.state_json)["state"] == "PENDING"
    assert walked[-1].committed.state_json == (await state_of(store_target)).state_json
    assert duplicate.duplicate.version == 1
    assert (malformed.error.reason, fields_of(malformed.error)) == (
        errors_pb2.ERROR_REASON_INVALID_FIELD,
        [f"actions[{len(WALK) + 1}].key"],
    )
    assert fenced.fenced == store_pb2.Fenced(lease="nobody")
    assert illegal.error.reason == errors_pb2.ERROR_REASON_ILLEGAL_TRANSITION
    assert (illegal.error.metadata["state"], illegal.error.metadata["allowed"]) == ("PENDING", "started,failed")
    assert unknown.error.metadata["known"] == "stamping_workflow"
    assert unknown.error.reason == errors_pb2.ERROR_REASON_UNKNOWN_REDUCER
    assert fields_of(unknown.error) == [f"actions[{len(WALK) + 4}].reducer"]
    assert fields_of(unfit.error) == [f"actions[{len(WALK) + 5}].payload_json.size_bytes"]


@pytest.mark.parametrize("count", [0, 501])
async def test_a_batch_of_none_or_too_many_is_refused_whole(lonely: ReducerServiceStub, count: int) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        await lonely.BatchReduce(pb.BatchReduceRequest(actions=[message("started")] * count))
    assert fields_of(refusal.value) == ["actions"]


async def test_five_hundred_actions_on_one_key_are_one_batch_and_one_commit(
    stub: ReducerServiceStub, store_target: str
) -> None:
    await stub.BatchReduce(pb.BatchReduceRequest(actions=[message("submitted"), message("started")]))
    steps = [message("step_completed") for _ in range(500)]
    response = await stub.BatchReduce(pb.BatchReduceRequest(actions=steps))
    assert {result.WhichOneof("outcome") for result in response.results} == {"committed"}
    assert (await state_of(store_target)).version == 2


async def test_states_that_an_answer_has_no_room_for_are_left_out(store_target: str) -> None:
    async with reducer_stub(store_target, limits=Limits.model_construct(answer_state_bytes=600)) as stub:
        actions = [message(type_, payload) for type_, payload in WALK[:4]]
        results = (await stub.BatchReduce(pb.BatchReduceRequest(actions=actions))).results
    assert [bool(result.committed.state_json) for result in results] == [True, False, False, False]
    assert [result.committed.version for result in results] == [1] * 4


async def test_a_dry_run_says_what_would_be_and_writes_nothing(stub: ReducerServiceStub, store_target: str) -> None:
    await reduce(stub, "submitted")
    before = await state_of(store_target)
    folded = (await stub.Reduce(pb.ReduceRequest(action=message("started"), dry_run=True))).committed
    assert (folded.version, json.loads(folded.state_json)["state"]) == (2, "PROCESSING")
    assert [event.event_type for event in folded.events] == ["WORKFLOW_STARTED", "STATE_TRANSITION"]
    assert not folded.HasField("commit")
    assert await state_of(store_target) == before


async def test_an_illegal_transition_names_the_state_and_what_it_allows(stub: ReducerServiceStub) -> None:
    await reduce(stub, "submitted")
    with pytest.raises(FailedPrecondition) as refusal:
        await reduce(stub, "completed")
    assert refusal.value.reason == errors_pb2.ERROR_REASON_ILLEGAL_TRANSITION
    assert refusal.value.metadata == {
        "key": KEY,
        "state": "PENDING",
        "type": "completed",
        "allowed": "started,failed",
    }


async def test_an_unknown_reducer_is_refused_with_those_that_are_known(lonely: ReducerServiceStub) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        await reduce(lonely, "submitted", reducer="stampings")
    assert refusal.value.reason == errors_pb2.ERROR_REASON_UNKNOWN_REDUCER
    assert refusal.value.metadata == {"field": "reducer", "reducer": "stampings", "known": "stamping_workflow"}
    assert fields_of(refusal.value) == ["action.reducer"]


async def test_an_action_id_of_another_action_is_refused(stub: ReducerServiceStub) -> None:
    number = str(uuid.uuid4())
    await reduce(stub, "submitted", action_id=number)
    with pytest.raises(AlreadyExists) as refusal:
        await reduce(stub, "submitted", {**SUBMITTED, "size_bytes": 28}, action_id=number)
    assert refusal.value.reason == errors_pb2.ERROR_REASON_ACTION_ID_REUSED


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"key": "workflow"}, "action.key"),
        ({"action_id": "17"}, "action.action_id"),
        ({"type": ""}, "action.type"),
        ({"payload_json": "[]"}, "action.payload_json"),
        ({"occur_time": None}, "action.occur_time"),
        ({"occur_time": Timestamp(seconds=2**60)}, "action.occur_time"),
        ({"guards": [store_pb2.Guard(lease="a//b", condition=store_pb2.GUARD_CONDITION_HELD)]}, "action.guards[0].lease"),
        ({"guards": [store_pb2.Guard(lease="a")]}, "action.guards[0].condition"),
        ({"blob_refs": ["0"]}, "action.blob_refs[0]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
async def test_bad_input_is_refused_by_the_fields_name(
    lonely: ReducerServiceStub, fields: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        await reduce(lonely, "submitted", **fields)
    assert fields_of(refusal.value) == [field]


async def test_an_empty_request_is_refused(lonely: ReducerServiceStub) -> None:
    with pytest.raises(InvalidArgument):
        await lonely.Reduce(pb.ReduceRequest())


async def test_what_the_fold_or_the_store_refuses_is_named_too_and_nothing_is_written(
    stub: ReducerServiceStub, store_target: str
) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        await reduce(stub, "submitted", "{}")
    assert fields_of(refusal.value) == ["action.payload_json.workflow_id"]
    with pytest.raises(InvalidArgument) as refusal:
        await reduce(stub, "submitted", blobs=[store_pb2.Blob(digest="a" * 64, content=b"other")])
    assert fields_of(refusal.value) == ["action.blobs[0].digest"]
    with pytest.raises(NotFound):
        await state_of(store_target)


async def test_an_action_without_a_correlation_id_bears_that_of_its_call(
    stub: ReducerServiceStub, database_url: str
) -> None:
    metadata = ((CORRELATION_METADATA, "call-1"),)
    await stub.Reduce(pb.ReduceRequest(action=message("submitted")), metadata=metadata)
    await stub.Reduce(pb.ReduceRequest(action=message("started", correlation_id="own")), metadata=metadata)
    assert await correlation_ids(database_url) == ["call-1", "own"]


async def test_more_actions_than_may_wait_are_refused() -> None:
    async with reducer_stub("127.0.0.1:1", QUICK.model_copy(update={"waiting_actions": 2})) as stub:
        with pytest.raises(ResourceExhausted) as refusal:
            await stub.BatchReduce(pb.BatchReduceRequest(actions=[message("submitted")] * 3))
    assert refusal.value.reason == QueueFull.reason
    assert refusal.value.metadata == {"limit": "2"}


async def test_distinct_keys_share_the_stores_messages(stub: ReducerServiceStub) -> None:
    actions = [message("submitted", key=f"workflow/{number}") for number in range(300)]
    answers = await asyncio.gather(*(stub.Reduce(pb.ReduceRequest(action=item)) for item in actions))
    assert [answer.committed.version for answer in answers] == [1] * 300


async def correlation_ids(database_url: str) -> list[str]:
    connection = await asyncpg.connect(database_url)
    try:
        rows = await connection.fetch("SELECT provenance FROM workflow_commits ORDER BY version")
        return [json.loads(row["provenance"])[3] for row in rows]
    finally:
        await connection.close()
