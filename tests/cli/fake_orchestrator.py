"""An orchestrator for the command's tests: a workflow stamps into a fake ledger when it is asked for, or fails when told to."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

import grpc
from blake3 import blake3

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.orchestrator.v1 import orchestrator_pb2 as pb
from services.chassis.errors import BridgeError, NotFound, Unavailable, to_message
from services.chassis.identity import op_id
from tests.cli.fake import LIMIT, FakeStamping, abort, split, too_large


class FakeOrchestrator:
    """The methods that the command calls, for threads. It records what it is asked."""

    service = pb.DESCRIPTOR.services_by_name["OrchestratorService"]

    def __init__(self, stamping: FakeStamping) -> None:
        self.refusals: dict[str, BridgeError] = {}
        """By method, what it answers with instead."""
        self.outages: Counter[str] = Counter()
        """By method, to how many calls it answers that it is stopping."""
        self.item_refusals: dict[str, BridgeError] = {}
        """By file_path; each once."""
        self.failures: dict[str, BridgeError] = {}
        """By file_path, what ends the workflow as FAILED."""
        self.endless: set[str] = set()
        """file_paths of workflows that never end."""
        self.polls_to_end = 2
        self.batches: list[pb.BatchSubmitWorkflowsRequest] = []
        self.polls: Counter[str] = Counter()
        self.workflows: dict[str, pb.Workflow] = {}
        self.on_end: Callable[[], object] = lambda: None
        self._stamping = stamping
        self._contents: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def BatchSubmitWorkflows(
        self, request: pb.BatchSubmitWorkflowsRequest, context: grpc.ServicerContext
    ) -> pb.BatchSubmitWorkflowsResponse:
        self._refuse("BatchSubmitWorkflows", context)
        with self._lock:
            self.batches.append(request)
            return pb.BatchSubmitWorkflowsResponse(results=[self._take(item) for item in request.items])

    def GetWorkflow(self, request: pb.GetWorkflowRequest, context: grpc.ServicerContext) -> pb.GetWorkflowResponse:
        self._refuse("GetWorkflow", context)
        with self._lock:
            workflow = self.workflows.get(request.workflow_id)
            if workflow is None:
                reason = errors_pb2.ERROR_REASON_WORKFLOW_NOT_FOUND
                abort(context, NotFound("there is no such workflow", reason=reason))
                raise AssertionError("abort raises")
            self.polls[workflow.workflow_id] += 1
            due = self.polls[workflow.workflow_id] >= self.polls_to_end and workflow.file_path not in self.endless
            if due and not workflow.HasField("end_time"):
                self._end(workflow)
            return pb.GetWorkflowResponse(workflow=workflow)

    def _take(self, item: pb.SubmitWorkflowRequest) -> pb.BatchSubmitWorkflowsResult:
        refusal = self.item_refusals.pop(item.file_path, None)
        if len(split(item.content)[1]) > LIMIT:
            refusal = too_large()
        if refusal:
            return pb.BatchSubmitWorkflowsResult(error=to_message(refusal))
        workflow_id = str(op_id(f"{item.namespace}\0{item.request_id}"))
        created = workflow_id not in self.workflows
        if created:
            self._contents[workflow_id] = item.content
            self.workflows[workflow_id] = pb.Workflow(
                workflow_id=workflow_id,
                state=pb.WORKFLOW_STATE_PENDING,
                version=1,
                namespace=item.namespace,
                file_path=item.file_path,
                size_bytes=len(item.content),
                content_digest=blake3(item.content).hexdigest(),
            )
        return pb.BatchSubmitWorkflowsResult(
            submitted=pb.SubmitWorkflowResponse(workflow_id=workflow_id, created=created)
        )

    def _end(self, workflow: pb.Workflow) -> None:
        self.on_end()
        workflow.version = 3
        workflow.end_time.GetCurrentTime()
        if failure := self.failures.get(workflow.file_path):
            workflow.state = pb.WORKFLOW_STATE_FAILED
            workflow.failure.CopyFrom(to_message(failure))
            return
        workflow.state = pb.WORKFLOW_STATE_COMPLETED
        content = split(self._contents[workflow.workflow_id])[1]
        request_id = f"{workflow.workflow_id}/stamp_creation"
        stamp, _ = self._stamping.record(request_id, workflow.namespace, workflow.file_path, content)
        workflow.stamp.CopyFrom(stamp)
        workflow.steps.add(name="stamp_creation", attempt_count=1)

    def _refuse(self, method: str, context: grpc.ServicerContext) -> None:
        if self.outages[method] > 0:
            self.outages[method] -= 1
            stopping = Unavailable("the node is stopping", reason=errors_pb2.ERROR_REASON_SHUTTING_DOWN)
            # The command's own patience is what is looked at, not the channel's.
            stopping.client_may_retry = False
            abort(context, stopping)
        if method in self.refusals:
            abort(context, self.refusals[method])
