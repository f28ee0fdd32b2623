"""The orchestrator's contract as its callers meet it: real stub, real nodes, real sockets, real PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from blake3 import blake3
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.orchestrator.v1 import orchestrator_pb2 as pb
from omninode.bridge.orchestrator.v1.orchestrator_pb2_grpc import OrchestratorServiceStub
from omninode.bridge.stamping.v1 import stamping_pb2
from omninode.bridge.store.v1 import store_pb2
from services.chassis.errors import AlreadyExists, BridgeError, InvalidArgument, NotFound, ResourceExhausted
from services.chassis.identity import BRIDGE
from services.orchestrator.domain import Limits
from services.orchestrator.peer import MessageSettings
from tests.orchestrator.node import Gate, Orchestrator, Others, orchestrator, other_nodes

SOURCE = b"def answer():\n    return 42\n"
STEPS = ["validate_input", "hash_generation", "stamp_creation", "event_publishing"]
SMALL = Limits(content_bytes=1000, stamp_bytes=100, batch_bytes=2000, metadata_bytes=200)


@pytest.fixture
async def others(database_url: str) -> AsyncIterator[Others]:
    async with other_nodes(database_url) as others:
        yield others


@pytest.fixture
async def replica(others: Others) -> AsyncIterator[tuple[Orchestrator, OrchestratorServiceStub]]:
    async with orchestrator(others, limits=SMALL, messages=MessageSettings(inline_bytes=500)) as replica:
        yield replica


@pytest.fixture
def stub(replica: tuple[Orchestrator, OrchestratorServiceStub]) -> OrchestratorServiceStub:
    return replica[1]


def submission(content: bytes = SOURCE, **fields: Any) -> pb.SubmitWorkflowRequest:
    """A valid submission, but for what a test gives."""
    return pb.SubmitWorkflowRequest(
        **{"request_id": uuid.uuid4().hex, "content": content, "file_path": "answer.py", **fields}
    )


def struct(**values: Any) -> Struct:
    result = Struct()
    result.update(values)
    return result


async def run(stub: OrchestratorServiceStub, request: pb.SubmitWorkflowRequest) -> pb.Workflow:
    response = await stub.RunWorkflow(pb.RunWorkflowRequest(submission=request))
    return response.workflow


async def test_a_workflow_ends_with_every_step_and_the_stamp_of_its_content(
    stub: OrchestratorServiceStub, others: Others
) -> None:
    request = submission(namespace="docs", workflow_id="build-17", metadata=struct(author="Ada", deep={"n": [1, None]}))
    workflow = await run(stub, request)
    digest = blake3(SOURCE).hexdigest()
    assert (workflow.workflow_id, workflow.state) == ("build-17", pb.WORKFLOW_STATE_COMPLETED)
    assert (workflow.namespace, workflow.file_path) == ("docs", "answer.py")
    assert (workflow.size_bytes, workflow.content_digest) == (len(SOURCE), digest)
    assert [step.name for step in workflow.steps] == STEPS
    assert all(step.attempt_count == 1 for step in workflow.steps)
    assert not workflow.HasField("failure")
    times = [workflow.submit_time, workflow.start_time, *(step.end_time for step in workflow.steps), workflow.end_time]
    assert times == sorted(times, key=lambda time: time.ToNanoseconds())
    ledger = await others.stamping.GetStamp(stamping_pb2.GetStampRequest(digest=digest, namespace="docs"))
    assert workflow.stamp == ledger.stamp
    assert workflow.stamp.intelligence_data == request.metadata


async def test_a_workflow_takes_two_commits_and_leaves_no_open_key(
    stub: OrchestratorServiceStub, others: Others
) -> None:
    workflow = await run(stub, submission())
    assert workflow.version == 2
    assert not (await others.store.ListOpenKeys(store_pb2.ListOpenKeysRequest(collection="workflow"))).keys


async def test_a_workflow_without_an_id_bears_that_of_its_request(stub: OrchestratorServiceStub) -> None:
    response = await stub.SubmitWorkflow(submission(request_id="r"))
    assert response.workflow_id == str(uuid.uuid5(BRIDGE, "omninode.services.metadata\0r"))


async def test_a_submission_sent_again_is_answered_as_the_first_and_runs_once(stub: OrchestratorServiceStub) -> None:
    request = submission()
    first = await stub.SubmitWorkflow(request)
    ended = await run(stub, request)
    again = await stub.SubmitWorkflow(request)
    assert (first.created, again.created) == (True, False)
    assert first.workflow_id == again.workflow_id == ended.workflow_id
    assert await run(stub, request) == ended
    assert (await stub.GetWorkflow(pb.GetWorkflowRequest(workflow_id=ended.workflow_id))).workflow == ended


async def test_sixteen_equal_submissions_at_once_are_one_workflow(stub: OrchestratorServiceStub) -> None:
    request = submission()
    answers = await asyncio.gather(*(stub.SubmitWorkflow(request) for _ in range(16)))
    assert sum(answer.created for answer in answers) == 1
    assert len({answer.workflow_id for answer in answers}) == 1


async def test_sixteen_callers_that_wait_for_one_workflow_get_the_same_end(stub: OrchestratorServiceStub) -> None:
    request = submission()
    workflows = await asyncio.gather(*(run(stub, request) for _ in range(16)))
    assert all(workflow == workflows[0] for workflow in workflows)
    assert workflows[0].state == pb.WORKFLOW_STATE_COMPLETED


async def test_many_workflows_at_once_all_end_with_their_own_content(stub: OrchestratorServiceStub) -> None:
    contents = [b"content %d" % n for n in range(100)]
    workflows = await asyncio.gather(*(run(stub, submission(content)) for content in contents))
    assert [workflow.stamp.digest for workflow in workflows] == [blake3(content).hexdigest() for content in contents]


async def test_content_that_is_stored_before_its_submission_is_stamped_as_any_other(
    stub: OrchestratorServiceStub, others: Others
) -> None:
    content = os.urandom(900)
    digest = blake3(content).hexdigest()
    workflow = await run(stub, submission(content))
    assert workflow.stamp.digest == digest
    chunks = [part.chunk async for part in others.store.GetBlob(store_pb2.GetBlobRequest(digest=digest))]
    assert b"".join(chunks) == content


async def test_empty_content_is_content(stub: OrchestratorServiceStub) -> None:
    workflow = await run(stub, submission(b""))
    assert workflow.stamp.digest == blake3(b"").hexdigest()


async def test_the_largest_content_goes_its_way(others: Others) -> None:
    content = os.urandom(10 * 1024 * 1024)
    async with orchestrator(others) as (_node, stub):
        workflow = await run(stub, submission(content))
        assert workflow.stamp.digest == blake3(content).hexdigest()


async def test_content_counts_without_its_own_stamp(others: Others) -> None:
    content = b"x = 1\n" * (10 * 1024 * 1024 // 6)
    async with orchestrator(others) as (_node, stub):
        request = stamping_pb2.CreateStampRequest(request_id="r", content=content, file_path="a.py", embed=True)
        stamped = (await others.stamping.CreateStamp(request)).stamped_content
        assert len(stamped) > 10 * 1024 * 1024
        workflow = await run(stub, submission(stamped, file_path="a.py"))
        assert workflow.stamp.digest == blake3(content).hexdigest()


async def test_content_that_is_over_its_bound_by_a_byte_without_any_stamp_is_refused(others: Others) -> None:
    async with orchestrator(others) as (_node, stub):
        with pytest.raises(InvalidArgument, check=refused(InvalidArgument, "CONTENT_TOO_LARGE")) as caught:
            await run(stub, submission(os.urandom(10 * 1024 * 1024 + 1)))
    assert [violation.field for violation in caught.value.violations] == ["content"]
    assert not (await others.store.ListOpenKeys(store_pb2.ListOpenKeysRequest(collection="workflow"))).keys


def nested(opening: str, closing: str, levels: int) -> Struct:
    """An object of so many levels in all."""
    return json_format.Parse('{"a":' + opening * (levels - 1) + "1" + closing * (levels - 1) + "}", Struct())


@pytest.mark.parametrize(("opening", "closing"), [('{"a":', "}"), ("[", "]")], ids=["objects", "lists"])
async def test_metadata_may_be_nested_as_deeply_as_every_parser_reads_its_answer(
    stub: OrchestratorServiceStub, opening: str, closing: str
) -> None:
    metadata = nested(opening, closing, 24)
    workflow = await run(stub, submission(metadata=metadata))
    assert workflow.stamp.intelligence_data == metadata
    with pytest.raises(InvalidArgument) as caught:
        await run(stub, submission(metadata=nested(opening, closing, 25)))
    (violation,) = caught.value.violations
    assert violation.field.startswith("metadata.a")
    assert violation.description == "must be at most 24 levels deep"


async def test_requests_beyond_the_memory_for_calls_are_refused_and_nothing_is_written(others: Others) -> None:
    async with orchestrator(others, limits=Limits(held_bytes=5000)) as (node, stub):
        gate = Gate()
        node.reducer.answers["BatchReduce"] = gate
        first = asyncio.create_task(run(stub, submission(b"a" * 10_000)))
        await gate.reached.wait()
        for call in (
            stub.SubmitWorkflow(submission()),
            stub.RunWorkflow(pb.RunWorkflowRequest(submission=submission())),
            stub.BatchSubmitWorkflows(pb.BatchSubmitWorkflowsRequest(items=[submission()])),
        ):
            with pytest.raises(ResourceExhausted, check=refused(ResourceExhausted, "QUEUE_FULL")) as caught:
                await call
            assert caught.value.retry_delay
        gate.opened.set()
        assert (await first).state == pb.WORKFLOW_STATE_COMPLETED
        assert (await run(stub, submission())).state == pb.WORKFLOW_STATE_COMPLETED


async def test_a_workflow_whose_stamp_is_refused_fails_with_the_refusal(
    stub: OrchestratorServiceStub, replica: tuple[Orchestrator, OrchestratorServiceStub]
) -> None:
    async def answer(_request: Any, _own: Any) -> Any:
        refusal = errors_pb2.Error(code=3, reason=errors_pb2.ERROR_REASON_CONTENT_TOO_LARGE, message="too large")
        result = stamping_pb2.BatchCreateStampsResult(error=refusal)
        return stamping_pb2.BatchCreateStampsResponse(results=[result])

    replica[0].stamping.answers["BatchCreateStamps"] = answer
    request = submission()
    workflow = await run(stub, request)
    assert workflow.state == pb.WORKFLOW_STATE_FAILED
    assert workflow.failure.reason == errors_pb2.ERROR_REASON_CONTENT_TOO_LARGE
    assert workflow.failure.code == InvalidArgument.code
    assert dict(workflow.failure.metadata) == {"step": "stamp_creation", "attempt_count": "1"}
    assert [step.name for step in workflow.steps] == STEPS[:3]
    assert not workflow.HasField("stamp")
    assert workflow.HasField("end_time")
    assert await run(stub, request) == workflow


async def test_the_longest_workflow_id_is_stamped_too(stub: OrchestratorServiceStub) -> None:
    workflow = await run(stub, submission(workflow_id="w" * 255))
    assert workflow.state == pb.WORKFLOW_STATE_COMPLETED


def refused(kind: type[BridgeError], reason: str) -> Callable[[BridgeError], bool]:
    return lambda error: isinstance(error, kind) and error.reason_name == reason


@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [
        pytest.param({"request_id": ""}, "request_id", "INVALID_FIELD", id="no request_id"),
        pytest.param({"workflow_id": ""}, "workflow_id", "INVALID_FIELD", id="an empty workflow_id"),
        pytest.param({"namespace": ""}, "namespace", "INVALID_FIELD", id="an empty namespace"),
        pytest.param({"content": b"a" * 1101}, "content", "CONTENT_TOO_LARGE", id="content over its bound"),
        pytest.param({"metadata": struct(a="b" * 200)}, "metadata", "INVALID_FIELD", id="metadata over its bound"),
        pytest.param({"metadata": struct(a=float("nan"))}, "metadata.a", "INVALID_FIELD", id="a number JSON has not"),
        pytest.param({"metadata": struct(a="\0")}, "metadata.a", "INVALID_FIELD", id="metadata with NUL"),
    ],
)
async def test_bad_input_is_refused_by_name_and_nothing_is_written(
    stub: OrchestratorServiceStub, others: Others, fields: dict[str, Any], field: str, reason: str
) -> None:
    request = submission(**fields)
    for call in (
        stub.SubmitWorkflow(request),
        stub.RunWorkflow(pb.RunWorkflowRequest(submission=request)),
    ):
        with pytest.raises(InvalidArgument, check=refused(InvalidArgument, reason)) as caught:
            await call
        assert [violation.field for violation in caught.value.violations] == [field]
    batch = await stub.BatchSubmitWorkflows(pb.BatchSubmitWorkflowsRequest(items=[request]))
    assert [violation.field for violation in batch.results[0].error.field_violations] == [f"items[0].{field}"]
    assert not (await others.store.ListOpenKeys(store_pb2.ListOpenKeysRequest(collection="workflow"))).keys


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"content": b"other"}, id="other content"),
        pytest.param({"file_path": "other.py"}, id="another path"),
        pytest.param({"metadata": struct(a=1)}, id="other metadata"),
        pytest.param({"workflow_id": "other"}, id="another workflow_id"),
    ],
)
async def test_a_request_id_is_refused_with_another_body(stub: OrchestratorServiceStub, other: dict[str, Any]) -> None:
    first = submission(request_id="r", workflow_id="w", namespace="docs")
    await stub.SubmitWorkflow(first)
    second = pb.SubmitWorkflowRequest()
    second.CopyFrom(first)
    second.MergeFrom(pb.SubmitWorkflowRequest(**other))
    with pytest.raises(AlreadyExists, check=refused(AlreadyExists, "REQUEST_ID_REUSED")) as caught:
        await stub.SubmitWorkflow(second)
    assert caught.value.metadata == {"request_id": "r", "namespace": "docs"}


async def test_one_request_id_in_two_namespaces_is_two_workflows(stub: OrchestratorServiceStub) -> None:
    answers = [await stub.SubmitWorkflow(submission(request_id="r", namespace=name)) for name in ("a", "b")]
    assert [answer.created for answer in answers] == [True, True]


async def test_a_workflow_id_in_use_is_refused_while_it_runs_and_after(stub: OrchestratorServiceStub) -> None:
    await run(stub, submission(workflow_id="w"))
    with pytest.raises(AlreadyExists, check=refused(AlreadyExists, "WORKFLOW_ID_IN_USE")) as caught:
        await stub.SubmitWorkflow(submission(workflow_id="w"))
    assert caught.value.metadata == {"workflow_id": "w"}


async def test_an_unknown_workflow_is_not_found(stub: OrchestratorServiceStub) -> None:
    with pytest.raises(NotFound, check=refused(NotFound, "WORKFLOW_NOT_FOUND")) as caught:
        await stub.GetWorkflow(pb.GetWorkflowRequest(workflow_id="w"))
    assert caught.value.metadata == {"workflow_id": "w"}


async def test_a_malformed_workflow_id_is_no_key(stub: OrchestratorServiceStub) -> None:
    with pytest.raises(InvalidArgument, check=refused(InvalidArgument, "INVALID_FIELD")) as caught:
        await stub.GetWorkflow(pb.GetWorkflowRequest(workflow_id="a/b"))
    assert caught.value.metadata == {"field": "workflow_id"}


async def test_each_item_of_a_batch_has_its_own_outcome_in_order(stub: OrchestratorServiceStub) -> None:
    known = submission(request_id="known")
    await stub.SubmitWorkflow(known)
    items = [
        submission(b"new"),
        known,
        submission(namespace="no name"),
        submission(b"stored before" * 60),
        submission(request_id="known", content=b"other"),
    ]
    response = await stub.BatchSubmitWorkflows(pb.BatchSubmitWorkflowsRequest(items=[*items, items[0]]))
    outcomes = [
        result.submitted.created
        if result.HasField("submitted")
        else errors_pb2.ErrorReason.Name(result.error.reason).removeprefix("ERROR_REASON_")
        for result in response.results
    ]
    assert outcomes == [True, False, "INVALID_FIELD", True, "REQUEST_ID_REUSED", False]
    for item in (items[0], items[3]):
        assert (await run(stub, item)).stamp.digest == blake3(item.content).hexdigest()


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        pytest.param([], "INVALID_FIELD", id="no item"),
        pytest.param([submission()] * 501, "INVALID_FIELD", id="too many items"),
        pytest.param([submission(b"a" * 1000)] * 3, "CONTENT_TOO_LARGE", id="too much content"),
    ],
)
async def test_a_batch_has_bounds(
    stub: OrchestratorServiceStub, items: list[pb.SubmitWorkflowRequest], reason: str
) -> None:
    with pytest.raises(InvalidArgument, check=refused(InvalidArgument, reason)) as caught:
        await stub.BatchSubmitWorkflows(pb.BatchSubmitWorkflowsRequest(items=items))
    assert caught.value.metadata["field"] == "items"
