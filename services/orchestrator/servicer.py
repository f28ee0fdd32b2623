"""The orchestrator's contract over gRPC: messages to the domain's values, the domain's answers to messages. No rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import Message
from pydantic import ValidationError

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.orchestrator.v1 import orchestrator_pb2, orchestrator_pb2_grpc
from omninode.bridge.stamping.v1 import stamping_pb2
from services.chassis.boundary import DEFAULT_NAMESPACE, check_size
from services.chassis.call_context import correlation_id
from services.chassis.coalesce import QueueFull
from services.chassis.errors import (
    BridgeError,
    ResourceExhausted,
    Unavailable,
    from_validation,
    invalid_field,
    reason_of,
    to_message,
)
from services.chassis.json_struct import to_text
from services.chassis.timestamp import to_timestamp
from services.orchestrator.domain import (
    Limits,
    Origin,
    Submission,
    Workflow,
    WorkflowName,
    default_workflow_id,
    refusal,
    workflow_of,
)
from services.orchestrator.peer import Peer, Reduced
from services.orchestrator.run import hashed
from services.orchestrator.runner import Runner

_Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class OrchestratorServicer(orchestrator_pb2_grpc.OrchestratorServiceServicer):
    """Answers the orchestrator's contract."""

    def __init__(self, peer: Peer, runner: Runner, limits: Limits) -> None:
        self._peer = peer
        self._runner = runner
        self._limits = limits
        self._held_bytes = 0

    async def SubmitWorkflow(
        self, request: orchestrator_pb2.SubmitWorkflowRequest, context: _Context
    ) -> orchestrator_pb2.SubmitWorkflowResponse:
        with self._holding(request):
            return await self._take_in(request)

    async def RunWorkflow(
        self, request: orchestrator_pb2.RunWorkflowRequest, context: _Context
    ) -> orchestrator_pb2.RunWorkflowResponse:
        with self._holding(request):
            taken = await self._take_in(request.submission)
            workflow = await self._runner.ended(taken.workflow_id, look_first=not taken.created)
        return orchestrator_pb2.RunWorkflowResponse(workflow=_to_message(workflow))

    async def BatchSubmitWorkflows(
        self, request: orchestrator_pb2.BatchSubmitWorkflowsRequest, context: _Context
    ) -> orchestrator_pb2.BatchSubmitWorkflowsResponse:
        items = request.items
        if not 1 <= len(items) <= self._limits.batch_items:
            raise invalid_field("items", f"must hold 1 to {self._limits.batch_items} items", item_count=str(len(items)))
        check_size("items", sum(len(item.content) for item in items), self._limits.batch_bytes)
        with self._holding(request):
            prepared = [await self._prepared(item) for item in items]
            submissions = [submission for submission in prepared if isinstance(submission, Submission)]
            outcomes = iter(await self._submit(submissions))
        response = orchestrator_pb2.BatchSubmitWorkflowsResponse()
        for index, submission in enumerate(prepared):
            outcome = submission if isinstance(submission, BridgeError) else next(outcomes)
            result = response.results.add()
            if isinstance(outcome, orchestrator_pb2.SubmitWorkflowResponse):
                result.submitted.CopyFrom(outcome)
            elif isinstance(outcome, BridgeError) and not isinstance(outcome, Unavailable | ResourceExhausted):
                result.error.CopyFrom(to_message(outcome, f"items[{index}]"))
            else:
                raise outcome
        return response

    async def GetWorkflow(
        self, request: orchestrator_pb2.GetWorkflowRequest, context: _Context
    ) -> orchestrator_pb2.GetWorkflowResponse:
        name = WorkflowName(workflow_id=request.workflow_id)
        return orchestrator_pb2.GetWorkflowResponse(workflow=_to_message(await self._peer.workflow(name.workflow_id)))

    @contextmanager
    def _holding(self, request: Message) -> Iterator[None]:
        """Counts a request that is held. Raises QueueFull where there is no room for it."""
        size, limit = request.ByteSize(), self._limits.held_bytes
        if self._held_bytes and self._held_bytes + size > limit:
            raise QueueFull(metadata={"limit_bytes": str(limit)})
        self._held_bytes += size
        try:
            yield
        finally:
            self._held_bytes -= size

    async def _take_in(
        self, request: orchestrator_pb2.SubmitWorkflowRequest
    ) -> orchestrator_pb2.SubmitWorkflowResponse:
        (outcome,) = await self._submit([await self._submission(request)])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def _submit(
        self, submissions: Sequence[Submission]
    ) -> list[orchestrator_pb2.SubmitWorkflowResponse | Exception]:
        call = correlation_id.get()
        outcomes = await self._peer.submit(submissions, call)
        return [
            self._taken(submission, outcome, call) for submission, outcome in zip(submissions, outcomes, strict=True)
        ]

    def _taken(
        self, submission: Submission, outcome: Reduced | Exception, call: str
    ) -> orchestrator_pb2.SubmitWorkflowResponse | Exception:
        if isinstance(outcome, Exception):
            return refusal(outcome, submission.origin) if isinstance(outcome, BridgeError) else outcome
        if outcome.state_json is not None:
            workflow = workflow_of(outcome.state_json, outcome.version)
            self._runner.hand_over(workflow, outcome.partition, submission.content, call)
        return orchestrator_pb2.SubmitWorkflowResponse(
            workflow_id=submission.origin.workflow_id, created=outcome.created
        )

    async def _prepared(self, item: orchestrator_pb2.SubmitWorkflowRequest) -> Submission | BridgeError:
        """The submission, or the refusal of an item of a batch."""
        try:
            return await self._submission(item)
        except BridgeError as error:
            return error
        except ValidationError as error:
            return from_validation(error)

    async def _submission(self, request: orchestrator_pb2.SubmitWorkflowRequest) -> Submission:
        namespace = request.namespace if request.HasField("namespace") else DEFAULT_NAMESPACE
        workflow_id = (
            request.workflow_id
            if request.HasField("workflow_id")
            else default_workflow_id(namespace, request.request_id)
        )
        origin = Origin(
            request_id=request.request_id, workflow_id=workflow_id, namespace=namespace, file_path=request.file_path
        )
        # Read once: every access of a bytes field copies it.
        content = request.content
        check_size("content", len(content), self._limits.content_bytes + self._limits.stamp_bytes)
        metadata = to_text(request.metadata, "metadata", self._limits.metadata_bytes)
        submission = Submission(origin, content, await hashed(content), metadata)
        if len(content) > self._limits.content_bytes:
            await self._peer.check_content(submission)
        return submission


def _to_message(workflow: Workflow) -> orchestrator_pb2.Workflow:
    return orchestrator_pb2.Workflow(
        workflow_id=workflow.workflow_id,
        state=orchestrator_pb2.WorkflowState.Value(f"WORKFLOW_STATE_{workflow.state}"),
        version=workflow.version,
        namespace=workflow.namespace,
        file_path=workflow.file_path,
        size_bytes=workflow.size_bytes,
        content_digest=workflow.content_digest,
        steps=[
            orchestrator_pb2.WorkflowStep(
                name=step.name, attempt_count=step.attempt_count, end_time=to_timestamp(step.end_time)
            )
            for step in workflow.steps
        ],
        stamp=_stamp(workflow.stamp) if workflow.stamp else None,
        failure=_failure(workflow.failure) if workflow.failure else None,
        submit_time=to_timestamp(workflow.submit_time),
        start_time=to_timestamp(workflow.start_time) if workflow.start_time else None,
        end_time=to_timestamp(workflow.end_time) if workflow.end_time else None,
    )


def _stamp(fields: Mapping[str, Any]) -> stamping_pb2.Stamp:
    """The stamp whose JSON form this is, which peer.stamp_json gave: json_format takes five times as long."""
    times = {name: to_timestamp(datetime.fromisoformat(fields[name])) for name in _STAMP_TIMES if name in fields}
    # JSON has 64-bit integers as text.
    sizes = {"size_bytes": int(fields["size_bytes"])} if "size_bytes" in fields else {}
    return stamping_pb2.Stamp(**{**fields, **times, **sizes})


_STAMP_TIMES = ("create_time", "revoke_time")


def _failure(fields: Mapping[str, Any]) -> errors_pb2.Error:
    return errors_pb2.Error(
        code=fields["code"],
        reason=reason_of(fields["reason"]),
        message=fields["message"],
        metadata={"step": fields["step"], "attempt_count": str(fields["attempt_count"])},
    )
