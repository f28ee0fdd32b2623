"""The runner's own promises, over a fake of the other nodes that a test holds and lets go: no socket, no database."""

from __future__ import annotations

import asyncio
import contextvars
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from omninode.bridge.stamping.v1 import stamping_pb2
from services.chassis.errors import Unavailable
from services.orchestrator.domain import (
    Coordination,
    EndedStep,
    Retry,
    Step,
    StepName,
    Workflow,
    WorkflowState,
    digest_of,
)
from services.orchestrator.peer import Owner, Reduced, Report
from services.orchestrator.runner import Runner, RunnerSettings

BOUND = 5.0
"""Seconds after which what a test waits for will not come."""
NEVER = 3600.0
CONTENT = b"print(42)\n"
TIME = datetime(2026, 1, 2, tzinfo=UTC)
COORDINATION = Coordination(
    steps=tuple(
        Step(
            name=name,
            timeout_seconds=60,
            total_timeout_seconds=60,
            retry=Retry(max_attempts=1, initial_backoff_seconds=0.01, max_backoff_seconds=0.01),
        )
        for name in StepName
    )
)
CALLER = contextvars.ContextVar("caller", default="nobody's")


def workflow(workflow_id: str, state: WorkflowState = WorkflowState.PENDING, **fields: Any) -> Workflow:
    given: dict[str, Any] = {
        "workflow_id": workflow_id,
        "state": state,
        "version": 1,
        "namespace": "docs",
        "file_path": "",
        "size_bytes": len(CONTENT),
        "content_digest": digest_of(CONTENT),
        "metadata": {},
        "steps": [],
        "stamp": None,
        "failure": None,
        "submit_time": TIME,
        "start_time": None,
        "end_time": None,
    }
    return Workflow(**{**given, **fields})


class FakePeer:
    """The other nodes: what is open, what is read, and every call that a run makes."""

    def __init__(self, *found: Workflow) -> None:
        self.found = {each.workflow_id: each for each in found}
        self.stored = CONTENT
        self.failures: list[Exception] = []
        """What the next looks for open workflows fail with."""
        self.looks = 0
        self.unreadable: set[str] = set()
        self.reading, self.readable = asyncio.Event(), asyncio.Event()
        self.stampable = asyncio.Event()
        self.stamping: list[tuple[str, str]] = []
        """The runs that came to their stamp: workflow, and the caller's context variable."""
        self.broken_off: list[str] = []
        self.reports: dict[str, tuple[Owner, list[Report]]] = {}
        self.changed = asyncio.Event()
        self.readable.set()
        self.stampable.set()

    def shares_messages(self, size: int) -> bool:
        return True

    async def open_workflows(self, partitions: Sequence[int]) -> AsyncIterator[list[tuple[str, int]]]:
        self.looks += 1
        self.changed.set()
        if self.failures:
            raise self.failures.pop()
        yield [(workflow_id, partitions[0]) for workflow_id in self.found]

    async def workflow(self, workflow_id: str) -> Workflow:
        self.reading.set()
        await self.readable.wait()
        if workflow_id in self.unreadable:
            raise Unavailable
        return self.found[workflow_id]

    async def content(self, digest: str) -> bytes:
        return self.stored

    async def create_stamp(self, workflow: Workflow, content: bytes) -> stamping_pb2.CreateStampResponse:
        self.stamping.append((workflow.workflow_id, CALLER.get()))
        self.changed.set()
        try:
            await self.stampable.wait()
        except asyncio.CancelledError:
            self.broken_off.append(workflow.workflow_id)
            self.changed.set()
            raise
        return stamping_pb2.CreateStampResponse()

    def report_of(self, action_type: str, step: str = "", payload: str = "{}") -> Report:
        return Report(Timestamp(), action_type, step, payload)

    async def report(self, workflow: Workflow, owner: Owner, reports: Sequence[Report]) -> Reduced:
        self.found.pop(workflow.workflow_id, None)
        self.reports[workflow.workflow_id] = (owner, list(reports))
        self.changed.set()
        return Reduced(True, 0, 2, None)

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(BOUND):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def ended(self, workflow_id: str) -> list[str]:
        """What was reported of the workflow."""
        await self.until(lambda: workflow_id in self.reports)
        return [report.type for report in self.reports[workflow_id][1]]


@asynccontextmanager
async def running(peer: FakePeer, **settings: Any) -> AsyncIterator[Runner]:
    given: Any = peer
    tuned = RunnerSettings(**{"announce_seconds": NEVER, "poll_seconds": NEVER, **settings})
    runner = Runner(given, COORDINATION, tuned)
    runner.start()
    try:
        yield runner
    finally:
        await runner.aclose()


def came_to_its_stamp(peer: FakePeer, workflow_id: str) -> bool:
    return workflow_id in [stamped for stamped, _ in peer.stamping]


WHOLE = ["started", *["step_completed"] * 4, "completed"]


async def test_a_workflow_runs_under_its_partitions_lease_and_in_its_callers_name_but_not_in_its_context() -> None:
    peer = FakePeer()
    async with running(peer) as runner:
        runner.acquire(7, 3)
        CALLER.set("the submitter's")
        runner.hand_over(workflow("w"), 7, CONTENT, "call-1")
        assert await peer.ended("w") == WHOLE
    assert peer.reports["w"][0] == Owner("orchestrator/runner/7", 3, "call-1")
    assert peer.stamping == [("w", "nobody's")]


async def test_a_workflow_of_a_partition_that_is_not_held_is_not_run() -> None:
    peer = FakePeer()
    async with running(peer) as runner:
        runner.acquire(1, 1)
        runner.hand_over(workflow("another's"), 2, CONTENT, "")
        runner.hand_over(workflow("own"), 1, CONTENT, "")
        await peer.ended("own")
    assert [workflow_id for workflow_id, _ in peer.stamping] == ["own"]


async def test_a_workflow_that_runs_is_not_begun_again_by_a_hand_over_nor_by_a_look() -> None:
    peer = FakePeer(workflow("w"), workflow("other"))
    peer.stampable.clear()
    async with running(peer) as runner:
        runner.acquire(0, 1)
        await peer.until(lambda: len(peer.stamping) == 2)
        runner.hand_over(workflow("w"), 0, CONTENT, "")
        peer.found["last"] = workflow("last")
        runner.acquire(1, 1)
        await peer.until(lambda: came_to_its_stamp(peer, "last"))
        peer.stampable.set()
        await peer.ended("w")
    assert sorted(workflow_id for workflow_id, _ in peer.stamping) == ["last", "other", "w"]


async def test_a_workflow_that_was_handed_over_while_it_was_read_is_run_once() -> None:
    peer = FakePeer(workflow("w"))
    peer.readable.clear()
    peer.stampable.clear()
    async with running(peer) as runner:
        runner.acquire(0, 1)
        await asyncio.wait_for(peer.reading.wait(), BOUND)
        runner.hand_over(workflow("w"), 0, CONTENT, "")
        peer.found["next"] = workflow("next")
        peer.readable.set()
        runner.acquire(1, 1)
        await peer.until(lambda: came_to_its_stamp(peer, "next"))
    assert sorted(workflow_id for workflow_id, _ in peer.stamping) == ["next", "w"]


@pytest.mark.parametrize("then", ["ended", "lost"])
async def test_what_ended_or_was_lost_while_it_was_read_is_not_run_and_takes_no_room(then: str) -> None:
    peer = FakePeer(workflow("w"))
    peer.readable.clear()
    async with running(peer, concurrency=1) as runner:
        runner.acquire(0, 1)
        await asyncio.wait_for(peer.reading.wait(), BOUND)
        if then == "ended":
            peer.found["w"] = workflow("w", WorkflowState.COMPLETED)
        else:
            runner.lose(0)
        peer.readable.set()
        # As soon as the look is over, and a hand-over may come in before those who wait.
        peer.failures = [Unavailable()]
        runner.acquire(1, 1)
        await peer.until(lambda: peer.looks == 2)
        runner.hand_over(workflow("next"), 1, CONTENT, "")
        assert await peer.ended("next") == WHOLE
    assert [workflow_id for workflow_id, _ in peer.stamping] == ["next"]


async def test_what_has_no_room_is_looked_for_at_once_and_run_when_there_is_some() -> None:
    peer = FakePeer()
    peer.stampable.clear()
    async with running(peer, concurrency=1) as runner:
        runner.acquire(0, 1)
        runner.hand_over(workflow("first"), 0, CONTENT, "")
        await peer.until(lambda: peer.stamping)
        peer.found["second"] = workflow("second")
        runner.hand_over(workflow("second"), 0, CONTENT, "")
        peer.stampable.set()
        assert await peer.ended("second") == WHOLE


async def test_losing_a_partition_breaks_off_its_runs_and_no_others() -> None:
    peer = FakePeer()
    peer.stampable.clear()
    async with running(peer) as runner:
        runner.acquire(0, 1)
        runner.acquire(1, 1)
        runner.hand_over(workflow("lost"), 0, CONTENT, "")
        runner.hand_over(workflow("kept"), 1, CONTENT, "")
        await peer.until(lambda: len(peer.stamping) == 2)
        runner.lose(0)
        await peer.until(lambda: peer.broken_off)
        peer.stampable.set()
        assert await peer.ended("kept") == WHOLE
    assert peer.broken_off == ["lost"]
    assert "lost" not in peer.reports


async def test_a_run_of_a_partition_that_came_back_is_known_while_the_one_before_it_ends() -> None:
    peer = FakePeer()
    peer.stampable.clear()
    async with running(peer) as runner:
        runner.acquire(0, 1)
        runner.hand_over(workflow("w"), 0, CONTENT, "")
        await peer.until(lambda: peer.stamping)
        runner.lose(0)
        runner.acquire(0, 2)
        runner.hand_over(workflow("w"), 0, CONTENT, "")
        await peer.until(lambda: peer.broken_off)
        for other in ("as it ends", "when it has ended"):
            runner.hand_over(workflow("w"), 0, CONTENT, "")
            runner.hand_over(workflow(other), 0, CONTENT, "")
            await peer.until(partial(came_to_its_stamp, peer, other))
        peer.stampable.set()
        await peer.ended("w")
    assert peer.reports["w"][0].epoch == 2
    assert peer.broken_off == ["w"]
    assert [workflow_id for workflow_id, _ in peer.stamping] == ["w", "w", "as it ends", "when it has ended"]


async def test_a_workflow_that_was_announced_goes_on_behind_its_last_step_and_is_not_started_again() -> None:
    done = [EndedStep(StepName.VALIDATE_INPUT, 1, TIME), EndedStep(StepName.HASH_GENERATION, 1, TIME)]
    peer = FakePeer(workflow("w", WorkflowState.PROCESSING, steps=done))
    async with running(peer) as runner:
        runner.acquire(0, 2)
        assert await peer.ended("w") == ["step_completed", "step_completed", "completed"]
    steps = [report.step for report in peer.reports["w"][1]]
    assert steps == [StepName.STAMP_CREATION, StepName.EVENT_PUBLISHING, ""]


async def test_stored_content_of_the_same_size_that_is_not_what_was_submitted_is_not_stamped() -> None:
    peer = FakePeer(workflow("w"))
    peer.stored = CONTENT[::-1]
    async with running(peer) as runner:
        runner.acquire(0, 1)
        assert await peer.ended("w") == ["started", "step_completed", "failed"]
    told = json.loads(peer.reports["w"][1][-1].payload)
    assert (told["step"], told["reason"]) == ("hash_generation", "BLOB_DIGEST_MISMATCH")
    assert not peer.stamping


async def test_a_workflow_that_cannot_be_read_holds_no_other_up() -> None:
    peer = FakePeer(workflow("unreadable"), workflow("w"))
    peer.unreadable = {"unreadable"}
    async with running(peer) as runner:
        runner.acquire(0, 1)
        assert await peer.ended("w") == WHOLE


@pytest.mark.parametrize(
    ("failure", "level"),
    [pytest.param(Unavailable(), "WARNING", id="refused"), pytest.param(RuntimeError(), "ERROR", id="a bug")],
)
async def test_a_look_that_failed_is_logged_and_followed_by_another(
    caplog: pytest.LogCaptureFixture, failure: Exception, level: str
) -> None:
    peer = FakePeer(workflow("w"))
    peer.failures = [failure]
    async with running(peer, poll_seconds=0.01) as runner:
        runner.acquire(0, 1)
        assert await peer.ended("w") == WHOLE
    assert [record.levelname for record in caplog.records] == [level]


async def test_who_waits_for_a_workflow_that_may_have_ended_is_told_without_a_wait() -> None:
    peer = FakePeer(workflow("w", WorkflowState.FAILED))
    async with running(peer, wait_poll_seconds=NEVER) as runner, asyncio.timeout(BOUND):
        assert await runner.ended("w", look_first=True) == peer.found["w"]


async def test_who_waits_for_a_workflow_that_another_replica_runs_is_told_when_it_is_looked_at() -> None:
    peer = FakePeer(workflow("w"))
    async with running(peer, wait_poll_seconds=0.01) as runner, asyncio.timeout(BOUND):
        waiting = asyncio.create_task(runner.ended("w", look_first=False))
        await peer.reading.wait()
        assert not waiting.done()
        peer.found["w"] = workflow("w", WorkflowState.COMPLETED)
        assert (await waiting).state is WorkflowState.COMPLETED
