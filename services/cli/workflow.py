"""Files as workflows of the orchestrator: submitted in batches, then waited for until each has ended.

A submission is the same whenever it is made, and waiting changes nothing: a call that meets a node in the middle of its restart is
made again, for a bounded time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import grpc
from blake3 import blake3

from omninode.bridge.orchestrator.v1 import orchestrator_pb2, orchestrator_pb2_grpc
from services.chassis.boundary import DEFAULT_NAMESPACE
from services.chassis.errors import BridgeError, from_message
from services.chassis.identity import op_id
from services.cli import batch, target
from services.cli.batch import UNARY_BYTES, Document
from services.cli.failure import Failed
from services.cli.stamping import Placement, Stamped
from services.cli.tree import File
from services.cli.window import in_order

T = TypeVar("T")

OUTAGE_SECONDS = 60.0
"""How long a call is made again while a node is away: a killed node is back in seconds, and its leases end in some more."""
RETRY_SECONDS = 0.2
"""Between two of these calls, each of which the channel has tried several times by itself."""
STALL_SECONDS = 120.0
"""A workflow is waited for no longer once none has ended for so long; it goes on without us."""
WAITS_IN_FLIGHT = 16
"""Workflows that are asked for at once: enough to hide the way to the node, few beside its own work."""
FIRST_POLL_SECONDS, LONGEST_POLL_SECONDS = 0.02, 0.2
"""Between two looks at the same workflow, doubled at each: a workflow takes milliseconds, unless something is in its way."""
TOO_LARGE = "CONTENT_TOO_LARGE"
"""The reason of a file that is larger than a workflow takes, whoever found it."""
STAMP_STEP = "stamp_creation"
"""The step that makes the stamp, by the request `<workflow_id>/<step>`."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """A file whose workflow is taken in, durably."""

    file: File
    workflow_id: str
    created: bool
    """Whether it was taken in now, and not by an earlier request."""


@dataclass(frozen=True, slots=True)
class Completed:
    """A file whose workflow was done to its end."""

    file: File
    workflow: orchestrator_pb2.Workflow


Submission: TypeAlias = Submitted | Failed
Outcome: TypeAlias = Completed | Failed


class Workflows:
    """Runs files as workflows in one namespace."""

    def __init__(
        self, stub: orchestrator_pb2_grpc.OrchestratorServiceStub, *, namespace: str = DEFAULT_NAMESPACE
    ) -> None:
        self._stub = stub
        self._namespace = namespace
        self._was_there = False
        """Whether a node ever answered: one that never did is not restarting, it was not started."""
        self._last_end = 0.0

    async def submit(self, files: Sequence[File]) -> AsyncGenerator[list[Submission], None]:
        """A submission for each file, in order, a batch of them at a time.

        A file that is too large or refused is its own failure. Raises Unavailable, which ends all.
        """
        async with aclosing(in_order(batch.batches(files), self._submit_batch, batch.REQUESTS_IN_FLIGHT)) as batches:
            async for submissions in batches:
                yield submissions

    async def wait(self, submissions: Sequence[Submission]) -> AsyncGenerator[Outcome, None]:
        """An outcome for each submission, in order, once its workflow has ended; one that FAILED is Failed. Raises Unavailable."""
        self._last_end = asyncio.get_running_loop().time()
        async with aclosing(in_order(submissions, self._outcome, WAITS_IN_FLIGHT)) as outcomes:
            async for outcome in outcomes:
                yield outcome

    async def run(self, files: Sequence[File]) -> AsyncGenerator[Outcome, None]:
        """An outcome for each file, in order: further batches are submitted while the first is waited for."""
        async with aclosing(self.submit(files)) as batches:
            async for submissions in batches:
                async with aclosing(self.wait(submissions)) as outcomes:
                    async for outcome in outcomes:
                        yield outcome

    async def _submit_batch(self, files: Sequence[File]) -> list[Submission]:
        return await batch.answers(files, self._send, _too_large)

    async def _send(self, documents: Sequence[Document]) -> list[Submission]:
        request = orchestrator_pb2.BatchSubmitWorkflowsRequest(items=[self._request(item) for item in documents])
        timeout = target.deadline(sum(len(item.content) for item in documents))

        async def call() -> list[Submission]:
            response = await self._stub.BatchSubmitWorkflows(request, timeout=timeout)
            return list(_submissions(documents, response))

        return await self._patiently(call)

    def _request(self, item: Document) -> orchestrator_pb2.SubmitWorkflowRequest:
        digest = blake3(item.content).hexdigest()
        return orchestrator_pb2.SubmitWorkflowRequest(
            request_id=batch.request_id(digest, item.file.name, self._namespace, embed=False),
            content=item.content,
            namespace=self._namespace,
            file_path=item.file.name,
        )

    async def _outcome(self, submission: Submission) -> Outcome:
        if isinstance(submission, Failed):
            return submission
        path = str(submission.file.path)
        try:
            workflow = await self._end(submission.workflow_id)
        except (BridgeError, grpc.aio.AioRpcError) as error:
            return target.failed(path, error)
        if workflow is None:
            return Failed(
                path, "DEADLINE_EXCEEDED", f"workflow {submission.workflow_id} has not ended; it goes on without us"
            )
        if workflow.state == orchestrator_pb2.WORKFLOW_STATE_FAILED:
            failure = from_message(workflow.failure)
            return Failed(path, target.reason_of(failure), f"workflow {workflow.workflow_id} failed: {failure.message}")
        return Completed(submission.file, workflow)

    async def _end(self, workflow_id: str) -> orchestrator_pb2.Workflow | None:
        """The workflow once it has ended; None when none ends any more."""
        loop = asyncio.get_running_loop()
        request = orchestrator_pb2.GetWorkflowRequest(workflow_id=workflow_id)
        pause = FIRST_POLL_SECONDS
        while True:
            workflow = (await self._patiently(lambda: self._stub.GetWorkflow(request))).workflow
            if workflow.HasField("end_time"):
                self._last_end = loop.time()
                return workflow
            if loop.time() - self._last_end > STALL_SECONDS:
                return None
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_POLL_SECONDS)

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """The result of `call`, which is made again while a node says that later may help, or is away after it was there."""
        loop = asyncio.get_running_loop()
        last = loop.time() + OUTAGE_SECONDS
        while True:
            try:
                answer = await call()
            except BridgeError as error:
                self._was_there = self._was_there or not target.is_nobody_there(error)
                if not (self._was_there and target.is_transient(error)) or loop.time() >= last:
                    raise
            else:
                self._was_there = True
                return answer
            await asyncio.sleep(RETRY_SECONDS)


def stamped(completed: Completed) -> Stamped:
    """What the workflow came to, as the stamping of its file: in the ledger alone."""
    workflow = completed.workflow
    created = workflow.stamp.op_id == str(op_id(f"{workflow.workflow_id}/{STAMP_STEP}"))
    return Stamped(completed.file, workflow.stamp, created, Placement.DETACHED)


def _submissions(
    documents: Sequence[Document], response: orchestrator_pb2.BatchSubmitWorkflowsResponse
) -> Iterator[Submission]:
    """What became of each document. Raises a transient refusal of one: all are to be sent again."""
    for item, result in zip(documents, response.results, strict=True):
        if result.HasField("submitted"):
            yield Submitted(item.file, result.submitted.workflow_id, result.submitted.created)
            continue
        refusal = from_message(result.error)
        if target.is_transient(refusal):
            raise refusal
        yield target.failed(str(item.file.path), refusal)


async def _too_large(file: File) -> Submission:
    message = f"{file.size:,} bytes are more than the {UNARY_BYTES:,} that a workflow takes"
    return Failed(str(file.path), TOO_LARGE, message)
