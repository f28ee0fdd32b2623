"""What becomes of workflows when something goes wrong: nothing is lost, nothing happens twice, nobody waits for ever."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from itertools import cycle
from typing import Any

import pytest
from blake3 import blake3

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.orchestrator.v1 import orchestrator_pb2 as pb
from omninode.bridge.orchestrator.v1.orchestrator_pb2_grpc import OrchestratorServiceStub
from omninode.bridge.stamping.v1 import stamping_pb2
from omninode.bridge.store.v1 import store_pb2
from services.chassis.errors import DeadlineExceeded, InvalidArgument, ResourceExhausted, Unavailable
from services.chassis.identity import partition_of
from services.chassis.partitions import lease_name
from services.orchestrator import runner
from services.orchestrator.domain import Coordination, Retry, Step, StepName, key_of
from services.orchestrator.peer import MessageSettings
from services.orchestrator.runner import RunnerSettings
from tests.orchestrator.node import BOUND, BRIEF, Answer, Gate, Others, orchestrator, other_nodes

COUNT = 16
SOURCE = b"print(42)\n"


def coordination(*, timeout: float = 5.0, total: float = 30.0) -> Coordination:
    """The contract's steps with waits that a test can afford."""
    retry = Retry(max_attempts=3, initial_backoff_seconds=0.01, max_backoff_seconds=0.02)
    return Coordination(
        steps=tuple(
            Step(name=name, timeout_seconds=timeout, total_timeout_seconds=total, retry=retry) for name in StepName
        )
    )


@pytest.fixture
async def others(database_url: str) -> AsyncIterator[Others]:
    async with other_nodes(database_url) as others:
        yield others


def submission(content: bytes = SOURCE, **fields: Any) -> pb.SubmitWorkflowRequest:
    return pb.SubmitWorkflowRequest(**{"request_id": uuid.uuid4().hex, "content": content, **fields})


async def run(stub: OrchestratorServiceStub, request: pb.SubmitWorkflowRequest) -> pb.Workflow:
    response = await stub.RunWorkflow(pb.RunWorkflowRequest(submission=request), timeout=BOUND)
    return response.workflow


class Counting:
    """Answers as the node does, and counts the answers."""

    def __init__(self) -> None:
        self._answered = asyncio.Semaphore(0)

    async def __call__(self, request: Any, own: Callable[[Any], Awaitable[Any]]) -> Any:
        response = await own(request)
        self._answered.release()
        return response

    async def reached(self, count: int) -> None:
        """Returns when there were `count` answers more."""
        for _ in range(count):
            await self._answered.acquire()


async def stamps(others: Others) -> list[stamping_pb2.Stamp]:
    return list((await others.stamping.ListStamps(stamping_pb2.ListStampsRequest(page_size=1000))).stamps)


async def open_keys(others: Others) -> list[str]:
    response = await others.store.ListOpenKeys(store_pb2.ListOpenKeysRequest(collection="workflow"))
    return [found.key for found in response.keys]


def refusing(times: int, failure: Callable[[], Exception]) -> Answer:
    """Raises that many times, then lets through."""
    left = times

    async def answer(request: Any, own: Callable[[Any], Awaitable[Any]]) -> Any:
        nonlocal left
        if left:
            left -= 1
            raise failure()
        return await own(request)

    return answer


def losing_the_answer(times: int) -> Answer:
    """Lets through and says that it did not: what a caller sees of a node that dies after its commit."""
    left = times

    async def answer(request: Any, own: Callable[[Any], Awaitable[Any]]) -> Any:
        nonlocal left
        response = await own(request)
        if left:
            left -= 1
            raise Unavailable
        return response

    return answer


async def test_a_stamping_node_that_is_away_full_or_slow_for_a_while_fails_no_workflow(others: Others) -> None:
    kinds = cycle([Unavailable(), ResourceExhausted(), DeadlineExceeded()])
    async with orchestrator(others, coordination=coordination()) as (node, stub):
        node.stamping.answers["BatchCreateStamps"] = refusing(7, partial(next, kinds))
        workflow = await run(stub, submission())
        assert workflow.state == pb.WORKFLOW_STATE_COMPLETED
        assert {step.name: step.attempt_count for step in workflow.steps}["stamp_creation"] == 8


async def test_a_stamping_node_that_stays_away_fails_the_workflow_when_its_time_is_used_up(others: Others) -> None:
    async with orchestrator(others, coordination=coordination(total=0.2)) as (node, stub):
        node.stamping.answers["BatchCreateStamps"] = refusing(1_000_000, Unavailable)
        workflow = await run(stub, submission())
        assert workflow.state == pb.WORKFLOW_STATE_FAILED
        assert workflow.failure.code == Unavailable.code
        assert int(workflow.failure.metadata["attempt_count"]) > 3


async def test_a_stamping_node_that_never_answers_is_asked_again(others: Others) -> None:
    async with orchestrator(others, coordination=coordination(timeout=0.3)) as (node, stub):
        gate = node.stamping.answers["BatchCreateStamps"] = Gate()
        attempts: list[Any] = []
        own = node.peer.create_stamp

        async def create_stamp(*asked: Any) -> Any:
            attempts.append(asked)
            if len(attempts) == 3:
                gate.opened.set()
            return await own(*asked)

        node.peer.create_stamp = create_stamp  # type: ignore[method-assign, assignment]  # attempts are counted
        workflow = await run(stub, submission())
        assert workflow.state == pb.WORKFLOW_STATE_COMPLETED
        assert {step.name: step.attempt_count for step in workflow.steps}["stamp_creation"] >= 3
        assert len(await stamps(others)) == 1


async def test_a_refusal_fails_the_workflow_at_once_with_its_reason(others: Others) -> None:
    async with orchestrator(others, coordination=coordination()) as (node, stub):
        node.stamping.answers["BatchCreateStamps"] = refusing(1_000_000, InvalidArgument)
        workflow = await run(stub, submission())
        assert workflow.state == pb.WORKFLOW_STATE_FAILED
        assert workflow.failure.reason == errors_pb2.ERROR_REASON_INVALID_FIELD
        assert dict(workflow.failure.metadata) == {"step": "stamp_creation", "attempt_count": "1"}
        assert not await open_keys(others)


@pytest.mark.parametrize(("faults", "state"), [(2, pb.WORKFLOW_STATE_COMPLETED), (1_000_000, pb.WORKFLOW_STATE_FAILED)])
async def test_a_fault_of_another_node_is_tried_as_often_as_the_contract_says(
    others: Others, faults: int, state: pb.WorkflowState.ValueType
) -> None:
    async with orchestrator(others, coordination=coordination()) as (node, stub):
        node.stamping.answers["BatchCreateStamps"] = refusing(faults, lambda: RuntimeError("secret"))
        workflow = await run(stub, submission())
        assert workflow.state == state
        assert {step.name: step.attempt_count for step in workflow.steps}["stamp_creation"] == 3
        if state == pb.WORKFLOW_STATE_FAILED:
            assert workflow.failure.reason == errors_pb2.ERROR_REASON_INTERNAL_ERROR
            assert workflow.failure.message == "internal error"


async def test_one_bad_workflow_harms_no_other_of_its_batch(others: Others) -> None:
    async def answer(request: stamping_pb2.BatchCreateStampsRequest, own: Callable[[Any], Awaitable[Any]]) -> Any:
        if any(item.content == b"bad" for item in request.items):
            raise RuntimeError
        return await own(request)

    async with orchestrator(others, coordination=coordination()) as (node, stub):
        node.stamping.answers["BatchCreateStamps"] = answer
        workflows = await asyncio.gather(*(run(stub, submission(content)) for content in (b"a", b"bad", b"b", b"c")))
        failed = [workflow.state == pb.WORKFLOW_STATE_FAILED for workflow in workflows]
        assert failed == [False, True, False, False]


async def test_a_reducer_that_is_away_holds_a_workflow_up_and_no_more(others: Others) -> None:
    async with orchestrator(others) as (node, stub):
        gate = node.stamping.answers["BatchCreateStamps"] = Gate()
        running = asyncio.create_task(run(stub, submission()))
        await asyncio.wait_for(gate.reached.wait(), BOUND)
        node.reducer.answers["BatchReduce"] = refusing(3, Unavailable)
        gate.opened.set()
        assert (await running).state == pb.WORKFLOW_STATE_COMPLETED


async def test_a_workflow_whose_steps_take_long_is_shown_processing_meanwhile(others: Others) -> None:
    running = RunnerSettings(announce_seconds=0.01, poll_seconds=0.1, wait_poll_seconds=0.1)
    async with orchestrator(others, running=running) as (node, stub):
        gate = node.stamping.answers["BatchCreateStamps"] = Gate()
        announced = node.reducer.answers["BatchReduce"] = Counting()
        ending = asyncio.create_task(run(stub, submission(workflow_id="w")))
        await asyncio.wait_for(announced.reached(2), BOUND)
        shown = (await stub.GetWorkflow(pb.GetWorkflowRequest(workflow_id="w"))).workflow
        assert (shown.state, shown.version) == (pb.WORKFLOW_STATE_PROCESSING, 2)
        gate.opened.set()
        ended = await ending
        assert (ended.state, ended.version) == (pb.WORKFLOW_STATE_COMPLETED, 3)
        assert ended.start_time.ToDatetime() < ended.end_time.ToDatetime()


async def test_answers_that_are_lost_on_their_way_double_nothing(others: Others) -> None:
    async with orchestrator(others, coordination=coordination()) as (node, stub):
        gate = node.stamping.answers["BatchCreateStamps"] = Gate()
        running = asyncio.create_task(run(stub, submission()))
        await asyncio.wait_for(gate.reached.wait(), BOUND)
        node.reducer.answers["BatchReduce"] = losing_the_answer(2)
        node.stamping.answers["BatchCreateStamps"] = losing_the_answer(2)
        gate.opened.set()
        workflow = await running
        assert (workflow.state, workflow.version) == (pb.WORKFLOW_STATE_COMPLETED, 2)
        assert len(await stamps(others)) == 1


async def test_a_submission_whose_answer_was_lost_is_carried_to_its_end_all_the_same(others: Others) -> None:
    async with orchestrator(others) as (node, stub):
        node.reducer.answers["BatchReduce"] = losing_the_answer(1)
        request = submission()
        with pytest.raises(Unavailable):
            await stub.SubmitWorkflow(request)
        assert (await run(stub, request)).state == pb.WORKFLOW_STATE_COMPLETED


async def test_a_submission_is_acknowledged_only_when_it_is_durable(others: Others) -> None:
    async with orchestrator(others) as (node, stub):
        gate = node.reducer.answers["BatchReduce"] = Gate()
        submitting = asyncio.ensure_future(stub.SubmitWorkflow(submission()))
        await asyncio.wait_for(gate.reached.wait(), BOUND)
        assert not submitting.done()
        assert not await open_keys(others)
        gate.opened.set()
        assert (await submitting).created


async def test_the_workflows_of_a_dead_replica_are_carried_on_by_another(others: Others) -> None:
    requests = [submission(b"content %d" % n) for n in range(20)]
    async with orchestrator(others, partitions=BRIEF) as (dying, stub):
        gate = dying.stamping.answers["BatchCreateStamps"] = Gate()
        await dying.owning(COUNT)
        for request in requests:
            assert (await stub.SubmitWorkflow(request)).created
        await asyncio.wait_for(gate.reached.wait(), BOUND)
        await dying.die()
        async with orchestrator(others, partitions=BRIEF) as (_heir, other_stub):
            workflows = await asyncio.gather(*(run(other_stub, request) for request in requests))
        # What the dead one had asked for arrives now.
        gate.opened.set()
    assert all(workflow.state == pb.WORKFLOW_STATE_COMPLETED for workflow in workflows)
    assert [workflow.stamp.digest for workflow in workflows] == [
        blake3(request.content).hexdigest() for request in requests
    ]
    assert len(await stamps(others)) == len(requests)
    assert max(workflow.version for workflow in workflows) <= 4
    assert not await open_keys(others)


async def test_a_replica_that_is_asked_to_end_leaves_its_work_to_others_at_once(others: Others) -> None:
    request = submission()
    async with orchestrator(others) as (leaving, stub):
        await leaving.owning(COUNT)
        gate = leaving.stamping.answers["BatchCreateStamps"] = Gate()
        await stub.SubmitWorkflow(request)
        await asyncio.wait_for(gate.reached.wait(), BOUND)
        await leaving.partitions.aclose()
        await leaving.runner.aclose()
        gate.opened.set()
        # Its leases would have held for 10 seconds.
        async with asyncio.timeout(8), orchestrator(others) as (_heir, other_stub):
            assert (await run(other_stub, request)).state == pb.WORKFLOW_STATE_COMPLETED
    assert len(await stamps(others)) == 1


async def test_a_workflow_taken_in_by_one_replica_and_run_by_another_ends_for_who_waits(others: Others) -> None:
    async with orchestrator(others, partitions=BRIEF) as (one, one_stub):
        await one.owning(COUNT)
        async with orchestrator(others, partitions=BRIEF) as (two, two_stub):
            await two.owning(COUNT // 2)
            ids = [f"w{n}" for n in range(12)]
            holders = {partition_of(key_of(name), COUNT) in two.partitions.owned() for name in ids}
            assert holders == {True, False}
            workflows = await asyncio.gather(
                *(
                    run(stub, submission(name.encode(), workflow_id=name))
                    for name, stub in zip(ids, [one_stub, two_stub] * 6, strict=True)
                )
            )
    assert all(workflow.state == pb.WORKFLOW_STATE_COMPLETED for workflow in workflows)
    assert len(await stamps(others)) == len(ids)


async def test_an_owner_that_was_fenced_changes_nothing_and_says_nothing(
    others: Others, caplog: pytest.LogCaptureFixture
) -> None:
    request = submission(workflow_id="w")
    partition = partition_of(key_of("w"), COUNT)
    name = lease_name("orchestrator", "runner", partition)
    async with orchestrator(others) as (paused, stub):
        await paused.owning(COUNT)
        gate = paused.stamping.answers["BatchCreateStamps"] = Gate()
        await stub.SubmitWorkflow(request)
        await asyncio.wait_for(gate.reached.wait(), BOUND)
        (held,) = (await others.store.ListLeases(store_pb2.ListLeasesRequest(prefix=name))).leases
        releasing = store_pb2.ReleaseLeaseRequest(name=name, owner=paused.owner, epoch=held.epoch)
        assert (await others.store.ReleaseLease(releasing)).released
        taking = store_pb2.AcquireLeaseRequest(name=name, owner="heir")
        taking.ttl.FromSeconds(60)
        assert (await others.store.AcquireLease(taking)).acquired
        fenced = asyncio.Event()

        async def answer(request: Any, own: Callable[[Any], Awaitable[Any]]) -> Any:
            response = await own(request)
            assert [result.WhichOneof("outcome") for result in response.results] == ["fenced"] * 6
            fenced.set()
            return response

        paused.reducer.answers["BatchReduce"] = answer
        gate.opened.set()
        await asyncio.wait_for(fenced.wait(), BOUND)
        workflow = (await stub.GetWorkflow(pb.GetWorkflowRequest(workflow_id="w"))).workflow
        assert (workflow.state, workflow.version) == (pb.WORKFLOW_STATE_PENDING, 1)
        assert not [
            record for record in caplog.records if record.name == runner.__name__ and record.levelname != "INFO"
        ]


async def test_no_more_runs_at_once_than_there_may_and_all_come_to_their_end(others: Others) -> None:
    at_once: list[int] = []

    async def answer(request: stamping_pb2.BatchCreateStampsRequest, own: Callable[[Any], Awaitable[Any]]) -> Any:
        at_once.append(len(request.items))
        return await own(request)

    running = RunnerSettings(concurrency=3, poll_seconds=0.1, wait_poll_seconds=0.1)
    async with orchestrator(others, running=running) as (node, stub):
        node.stamping.answers["BatchCreateStamps"] = answer
        await node.owning(COUNT)
        workflows = await asyncio.gather(*(run(stub, submission(b"%d" % n)) for n in range(30)))
        assert all(workflow.state == pb.WORKFLOW_STATE_COMPLETED for workflow in workflows)
        assert max(at_once) <= 3


async def test_content_beyond_the_memory_for_it_waits_in_the_store(others: Others) -> None:
    running = RunnerSettings(memory_bytes=3000, poll_seconds=0.1, wait_poll_seconds=0.1)
    async with orchestrator(others, running=running) as (node, stub):
        await node.owning(COUNT)
        read: list[str] = []
        own = node.peer.content

        async def content(digest: str) -> bytes:
            read.append(digest)
            return await own(digest)

        node.peer.content = content  # type: ignore[method-assign]  # what is read is looked at
        contents = [b"%d" % n * 1000 for n in range(10)]
        workflows = await asyncio.gather(*(run(stub, submission(content)) for content in contents))
        assert [workflow.stamp.digest for workflow in workflows] == [blake3(given).hexdigest() for given in contents]
        assert read


async def test_small_workflows_do_not_wait_behind_large_ones(others: Others) -> None:
    running = RunnerSettings(memory_bytes=4000, poll_seconds=0.1, wait_poll_seconds=0.1)
    async with orchestrator(others, running=running, messages=MessageSettings(inline_bytes=100)) as (node, stub):
        gate = node.stamping.answers["CreateStamp"] = Gate()
        await node.owning(COUNT)
        large = [asyncio.create_task(run(stub, submission(b"%d" % n * 1500))) for n in range(3)]
        await gate.reached.wait()
        assert (await run(stub, submission(b"small"))).state == pb.WORKFLOW_STATE_COMPLETED
        # Nobody hands this one over: it is found, while the large ones that were found before it wait.
        node.reducer.answers["BatchReduce"] = losing_the_answer(1)
        found = submission(b"found")
        with pytest.raises(Unavailable):
            await stub.SubmitWorkflow(found)
        assert (await run(stub, found)).state == pb.WORKFLOW_STATE_COMPLETED
        gate.opened.set()
        assert [workflow.state for workflow in await asyncio.gather(*large)] == [pb.WORKFLOW_STATE_COMPLETED] * 3


async def test_content_that_is_gone_fails_its_workflow(others: Others) -> None:
    async with orchestrator(others) as (node, stub):
        node.reducer.answers["BatchReduce"] = losing_the_answer(1)
        request = submission()

        async def gone(digest: str) -> bytes:
            return b"other"

        node.peer.content = gone  # type: ignore[method-assign]  # a store that lost it
        with pytest.raises(Unavailable):
            await stub.SubmitWorkflow(request)
        workflow = await run(stub, request)
        assert workflow.failure.reason == errors_pb2.ERROR_REASON_BLOB_DIGEST_MISMATCH
        assert workflow.failure.metadata["step"] == "validate_input"


async def test_the_callers_deadline_ends_the_wait_and_not_the_workflow(others: Others) -> None:
    async with orchestrator(others) as (node, stub):
        await node.owning(COUNT)
        gate = node.stamping.answers["BatchCreateStamps"] = Gate()
        request = submission()
        with pytest.raises(DeadlineExceeded):
            await stub.RunWorkflow(pb.RunWorkflowRequest(submission=request), timeout=0.5)
        gate.opened.set()
        assert (await run(stub, request)).state == pb.WORKFLOW_STATE_COMPLETED
        assert len(await stamps(others)) == 1


async def test_a_state_that_is_no_workflow_holds_no_workflow_up(others: Others) -> None:
    action = store_pb2.CommitAction(action_id=str(uuid.uuid4()), fingerprint=b"a" * 32, type="opened")
    foreign = store_pb2.TryCommitRequest(key="workflow/foreign", state_json="{}", actions=[action])
    foreign.expected.absent.SetInParent()
    await others.store.TryCommit(foreign)
    async with orchestrator(others) as (node, stub):
        node.reducer.answers["BatchReduce"] = losing_the_answer(1)
        request = submission()
        with pytest.raises(Unavailable):
            await stub.SubmitWorkflow(request)
        assert (await run(stub, request)).state == pb.WORKFLOW_STATE_COMPLETED
