"""How the other nodes' answers are read, over stubs that answer as a test says."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from omninode.bridge.orchestrator.v1 import orchestrator_pb2
from omninode.bridge.reducer.v1 import reducer_pb2
from omninode.bridge.store.v1 import store_pb2
from services.chassis.errors import Aborted, BridgeError, NotFound, ResourceExhausted, Unavailable, to_message
from services.chassis.routing import Router
from services.orchestrator.domain import (
    Limits,
    Origin,
    ReducerGaveUp,
    StepName,
    Submission,
    Workflow,
    digest_of,
    workflow_of,
)
from services.orchestrator.peer import MessageSettings, Owner, Peer, Reduced, ReducerReplica
from services.orchestrator.servicer import OrchestratorServicer

STATE = {
    "workflow_id": "w",
    "state": "PENDING",
    "namespace": "docs",
    "file_path": "",
    "size_bytes": 1,
    "content_digest": digest_of(b"x"),
    "metadata": {},
    "steps": [],
    "submit_time": "2026-01-02T03:04:05.000000Z",
}


STEPS = list(StepName)


class FakeStub:
    """Answers each method with what a function makes of the request, and keeps the requests."""

    def __init__(self, **answers: Any) -> None:
        self._answers = answers
        self.requests: list[Any] = []

    def __getattr__(self, method: str) -> Any:
        async def call(request: Any, **_options: Any) -> Any:
            self.requests.append(request)
            return self._answers[method](request)

        return call


def peer_of(*, reducer: Any = None, store: Any = None, **settings: Any) -> Peer:
    unused: Any = None
    messages = MessageSettings(**settings)
    return Peer(
        stamping=unused,
        reducers=Router.of(ReducerReplica(reducer, messages)),
        store=store,
        settings=messages,
        actor="one",
        now=lambda: 1_767_323_045_678_901_999,
    )


def submission(workflow_id: str, content: bytes = b"x") -> Submission:
    origin = Origin(request_id=workflow_id, workflow_id=workflow_id, namespace="docs", file_path="")
    return Submission(origin, content, digest_of(content), "{}")


def results(*each: reducer_pb2.BatchReduceResult) -> Any:
    return lambda _request: reducer_pb2.BatchReduceResponse(results=each)


def committed(request: reducer_pb2.BatchReduceRequest) -> reducer_pb2.BatchReduceResponse:
    response = reducer_pb2.BatchReduceResponse()
    for _ in request.actions:
        response.results.add().committed.commit.partition = 3
    return response


async def test_every_page_of_open_workflows_is_read() -> None:
    def page(request: store_pb2.ListOpenKeysRequest) -> store_pb2.ListOpenKeysResponse:
        assert (request.collection, list(request.partitions)) == ("workflow", [3, 5])
        keys = {"": ["a", "b"], "b": [], "c": ["c/d"]}[request.page_token]
        response = store_pb2.ListOpenKeysResponse(next_page_token={"": "b", "b": "c", "c": ""}[request.page_token])
        for key in keys:
            response.keys.add(key=f"workflow/{key}", partition=5)
        return response

    peer = peer_of(store=FakeStub(ListOpenKeys=page))
    assert [page async for page in peer.open_workflows([3, 5])] == [[("a", 5), ("b", 5)], [], [("c/d", 5)]]


async def test_a_workflow_that_the_stores_answer_had_no_room_for_is_asked_for_alone() -> None:
    def states(request: store_pb2.BatchGetStatesRequest) -> store_pb2.BatchGetStatesResponse:
        response = store_pb2.BatchGetStatesResponse()
        for key in request.keys:
            response.results.add().state.MergeFrom(store_pb2.State(key=key, version=4, state_omitted=True))
        return response

    def state(request: store_pb2.GetStateRequest) -> store_pb2.GetStateResponse:
        found = store_pb2.State(key=request.key, version=5, state_json=json.dumps(STATE))
        return store_pb2.GetStateResponse(state=found)

    store = FakeStub(BatchGetStates=states, GetState=state)
    workflow = await peer_of(store=store).workflow("w")
    assert (workflow.workflow_id, workflow.version) == ("w", 5)
    assert store.requests[1] == store_pb2.GetStateRequest(key="workflow/w")


@pytest.mark.parametrize(
    ("result", "kind"),
    [
        pytest.param(reducer_pb2.BatchReduceResult(gave_up=reducer_pb2.GaveUp()), ReducerGaveUp, id="given up"),
        pytest.param(reducer_pb2.BatchReduceResult(error=to_message(NotFound())), NotFound, id="refused"),
    ],
)
async def test_a_submission_that_took_no_effect_is_refused(
    result: reducer_pb2.BatchReduceResult, kind: type[BridgeError]
) -> None:
    (outcome,) = await peer_of(reducer=FakeStub(BatchReduce=results(result))).submit([submission("w")], "")
    assert isinstance(outcome, kind)


def test_what_was_given_up_may_be_sent_again() -> None:
    assert issubclass(ReducerGaveUp, Aborted)


async def test_what_took_effect_before_was_not_created_now_and_has_no_state_to_show() -> None:
    known = reducer_pb2.BatchReduceResult()
    known.duplicate.version = 4
    known.duplicate.commit.partition = 3
    (outcome,) = await peer_of(reducer=FakeStub(BatchReduce=results(known))).submit([submission("w")], "")
    assert outcome == Reduced(False, 3, 4, None)


async def test_contents_that_together_are_too_large_go_in_several_messages() -> None:
    reducer = FakeStub(BatchReduce=committed)
    peer = peer_of(reducer=reducer, message_bytes=10_000)
    outcomes = await peer.submit([submission(f"w{n}", b"x" * 4000) for n in range(5)], "")
    assert [isinstance(outcome, Reduced) for outcome in outcomes] == [True] * 5
    assert [len(request.actions) for request in reducer.requests] == [2, 2, 1]


async def test_a_submission_tells_who_took_it_in_when_and_for_which_call() -> None:
    reducer = FakeStub(BatchReduce=committed)
    await peer_of(reducer=reducer).submit([submission("w")], "call-1")
    (action,) = reducer.requests[0].actions
    assert (action.key, action.type, action.actor, action.correlation_id) == (
        "workflow/w",
        "submitted",
        "one",
        "call-1",
    )
    assert action.occur_time.ToJsonString() == "2026-01-02T03:04:05.678901Z"


@pytest.mark.parametrize("failure", [Unavailable(), ResourceExhausted()], ids=lambda each: type(each).__name__)
async def test_another_node_that_is_away_or_full_ends_a_batch_of_submissions_as_a_whole(failure: BridgeError) -> None:
    def away(_request: Any) -> Any:
        raise failure

    unused: Any = None
    servicer = OrchestratorServicer(peer_of(reducer=FakeStub(BatchReduce=away)), unused, Limits())
    items = [orchestrator_pb2.SubmitWorkflowRequest(request_id=name, content=b"x") for name in ("a", "b", "")]
    request = orchestrator_pb2.BatchSubmitWorkflowsRequest(items=items)
    async with asyncio.timeout(5):
        with pytest.raises(type(failure)):
            await servicer.BatchSubmitWorkflows(request, unused)


@pytest.mark.parametrize("created", [True, False], ids=["created now", "known before"])
async def test_only_who_runs_a_workflow_that_was_known_before_looks_whether_it_has_ended(created: bool) -> None:
    looked: list[bool] = []

    class FakeRunner:
        async def ended(self, workflow_id: str, *, look_first: bool) -> Workflow:
            looked.append(look_first)
            return workflow_of(json.dumps({**STATE, "workflow_id": workflow_id}), 1)

    result = reducer_pb2.BatchReduceResult()
    if created:
        result.committed.version = 1
    else:
        result.duplicate.version = 1
    runner: Any = FakeRunner()
    unused: Any = None
    servicer = OrchestratorServicer(peer_of(reducer=FakeStub(BatchReduce=results(result))), runner, Limits())
    submitted = orchestrator_pb2.SubmitWorkflowRequest(request_id="r", workflow_id="w", content=b"x")
    response = await servicer.RunWorkflow(orchestrator_pb2.RunWorkflowRequest(submission=submitted), unused)
    assert response.workflow.workflow_id == "w"
    assert looked == [not created]


async def test_no_message_holds_more_actions_than_the_reducer_takes() -> None:
    def answer(request: reducer_pb2.BatchReduceRequest) -> reducer_pb2.BatchReduceResponse:
        results = [reducer_pb2.BatchReduceResult(committed=reducer_pb2.Folded(version=2)) for _ in request.actions]
        return reducer_pb2.BatchReduceResponse(results=results)

    reducer = FakeStub(BatchReduce=answer)
    peer = peer_of(reducer=reducer)
    owner = Owner("orchestrator/runner/1", 1, "")
    reports = [
        peer.report_of("started"),
        *(peer.report_of("step_completed", step) for step in STEPS),
        peer.report_of("completed"),
    ]
    await asyncio.gather(
        *(
            peer.report(workflow_of(json.dumps({**STATE, "workflow_id": f"w{number}"}), 1), owner, reports)
            for number in range(200)
        )
    )
    sizes = [len(request.actions) for request in reducer.requests]
    assert sum(sizes) == 200 * len(reports)
    assert 400 < max(sizes) <= 500
