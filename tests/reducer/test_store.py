"""How the store is called and its answers are read, over a stub that answers as a test says."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.reducer.v1 import reducer_pb2
from omninode.bridge.store.v1 import store_pb2
from services.chassis.errors import (
    BridgeError,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
    invalid_field,
    to_message,
)
from services.reducer import store as store_module
from services.reducer.domain import ABSENT, Event, EventKind, Limits, Reducers
from services.reducer.store import Commit, Store
from tests.reducer.node import folder_over, folding_servicer, stamping_workflow
from tests.reducer.workflow import DIGEST, SUBMITTED, WALK, action, message


class FakeStub:
    """A store that commits whatever it is sent, or fails with what a test gives; it keeps the requests."""

    def __init__(self, failure: BridgeError | None = None) -> None:
        self.requests: list[store_pb2.BatchTryCommitRequest] = []
        self._failure = failure

    async def BatchTryCommit(self, request: store_pb2.BatchTryCommitRequest) -> store_pb2.BatchTryCommitResponse:
        if self._failure is not None:
            raise self._failure
        self.requests.append(request)
        response = store_pb2.BatchTryCommitResponse()
        for item in request.items:
            response.results.add().committed.version = item.expected.version + 1
        return response


def store_over(stub: Any) -> Store:
    return Store(stub, max_waiting=100)


def weighing(kind: str, key: str) -> Commit:
    """A commit of some 4,000 characters."""
    text = '{"a": "' + "x" * 4000 + '"}'
    given = action("started", key=key)
    events: list[Event] = []
    state = "{}"
    match kind:
        case "a state":
            state = text
        case "events":
            events = [Event(EventKind.EVENT, "STEP", "workflow", text)]
        case "a payload":
            given = action("started", text, key=key)
        case _:
            given = action("started", key=key, blobs=[{"digest": DIGEST, "content": b"x" * 4000}])
    return Commit(key, 0, state, 1, [(given, events)], None, False)


@pytest.mark.parametrize("kind", ["a state", "events", "a payload", "a blob"])
async def test_commits_that_together_are_too_large_go_in_several_messages(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(store_module, "_BATCH_CHARACTERS", 10_000)
    stub = FakeStub()
    store = store_over(stub)
    answers = await asyncio.gather(*(store.try_commit(weighing(kind, f"workflow/{n}")) for n in range(5)))
    assert answers == [store_pb2.Committed(version=1)] * 5
    assert [len(request.items) for request in stub.requests] == [2, 2, 1]


async def test_a_read_tells_an_absent_key_from_one_that_the_store_refuses() -> None:
    class Reading:
        async def BatchGetStates(self, request: store_pb2.BatchGetStatesRequest) -> store_pb2.BatchGetStatesResponse:
            response = store_pb2.BatchGetStatesResponse()
            response.results.add().error.reason = errors_pb2.ERROR_REASON_STATE_NOT_FOUND
            refusal = to_message(invalid_field("key", "must have an id"), f"keys[{len(request.keys) - 1}]")
            response.results.add().error.CopyFrom(refusal)
            return response

    store = store_over(Reading())
    absent, refused = await asyncio.gather(store.get("workflow/a"), store.get("workflow/b"), return_exceptions=True)
    assert absent == ABSENT
    assert isinstance(refused, InvalidArgument)
    assert refused.reason == errors_pb2.ERROR_REASON_INVALID_FIELD


async def batch(stub: FakeStub, limits: Limits, **fields: Any) -> reducer_pb2.BatchReduceResponse:
    unused: Any = None
    async with folder_over(stub) as folder:
        servicer = folding_servicer(Reducers([stamping_workflow()]), folder, limits)
        return await servicer.BatchReduce(reducer_pb2.BatchReduceRequest(**fields), unused)


async def test_an_answer_of_last_states_only_shows_each_keys_last_state_and_no_events() -> None:
    keys = ("workflow/a", "workflow/b")
    actions = [message(type_, payload, key=key) for type_, payload in WALK[:2] for key in keys]
    results = (await batch(FakeStub(), Limits(), actions=actions, last_states_only=True)).results
    assert [result.WhichOneof("outcome") for result in results] == ["committed"] * 4
    states = [result.committed.state_json for result in results]
    assert states[:2] == ["", ""]
    assert [json.loads(state)["state"] for state in states[2:]] == ["PROCESSING"] * 2
    assert not any(result.committed.events for result in results)


async def test_the_room_for_states_is_counted_in_bytes() -> None:
    actions = [message("submitted", {**SUBMITTED, "file_path": "é" * 400}, key=f"workflow/{n}") for n in range(2)]
    whole = (await batch(FakeStub(), Limits(), actions=actions)).results
    size = len(whole[0].committed.state_json.encode())
    for room, shown in ((2 * size, [True, True]), (2 * size - 1, [True, False]), (size - 1, [False, False])):
        results = (await batch(FakeStub(), Limits.model_construct(answer_state_bytes=room), actions=actions)).results
        assert [bool(result.committed.state_json) for result in results] == shown


@pytest.mark.parametrize("failure", [Unavailable(), ResourceExhausted()], ids=lambda each: type(each).__name__)
async def test_a_store_that_is_away_or_full_ends_a_batch_as_a_whole(failure: BridgeError) -> None:
    actions = [message("submitted", key="no collection"), message("submitted")]
    with pytest.raises(type(failure)):
        await batch(FakeStub(failure), Limits(), actions=actions)
