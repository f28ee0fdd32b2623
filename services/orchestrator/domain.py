"""What a workflow is, what may be submitted, what is done next, and this node's refusals. Pure: clock and chance are arguments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

import pydantic_core
from blake3 import blake3
from pydantic import BaseModel, ConfigDict, Field, field_validator

from omninode.bridge.errors.v1 import errors_pb2
from services.chassis.boundary import REQUEST_ID_CHARACTERS, FilePath, Name, RequestId
from services.chassis.errors import (
    Aborted,
    AlreadyExists,
    BridgeError,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from services.chassis.identity import op_id

COLLECTION = "workflow"
REDUCER = "stamping_workflow"

_MIB = 1024 * 1024
_FAULT = (13, "INTERNAL_ERROR", "internal error")
"""gRPC's INTERNAL, as an interceptor answers it."""


class ContentMismatch(InvalidArgument):
    """The stored content is not the one that was submitted."""

    reason = errors_pb2.ERROR_REASON_BLOB_DIGEST_MISMATCH


class RequestIdReused(AlreadyExists):
    """The request_id was used before with another body; the first request stands."""

    reason = errors_pb2.ERROR_REASON_REQUEST_ID_REUSED


class WorkflowIdInUse(AlreadyExists):
    """Another request has a workflow of this id."""

    reason = errors_pb2.ERROR_REASON_WORKFLOW_ID_IN_USE


class WorkflowNotFound(NotFound):
    """There is no workflow of this id."""

    reason = errors_pb2.ERROR_REASON_WORKFLOW_NOT_FOUND


class ReducerGaveUp(Aborted):
    """Other writers of the workflow came first as often as the reducer tries; the same call may succeed."""

    reason = errors_pb2.ERROR_REASON_TRANSACTION_CONFLICT


class Fenced(FailedPrecondition):
    """Another replica runs the workflow."""


class StepTimedOut(DeadlineExceeded):
    """The step did not end in its time."""

    reason = errors_pb2.ERROR_REASON_DEADLINE_TOO_SHORT


class Limits(BaseModel):
    """What one call may hold."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    content_bytes: int = Field(10 * _MIB, gt=0)
    """Content without its own stamps, which the stamping node counts."""
    stamp_bytes: int = Field(64 * 1024, gt=0)
    """What a content's own stamps may add to that. Content in between is shown to the stamping node before it is taken in."""
    batch_items: int = Field(500, gt=0)
    """Items of a batch: what one SQL statement of the store takes best."""
    batch_bytes: int = Field(12 * _MIB, gt=0)
    """Contents of a batch in all, so that a batch with its paths and metadata stays below the 16 MiB of a message."""
    metadata_bytes: int = Field(64 * 1024, gt=0)
    """A workflow's metadata, as JSON; it stands in its state, and in its stamp."""
    held_bytes: int = Field(256 * _MIB, gt=0)
    """Requests of calls under way, in all; with their copies they take up to three times as much memory. One alone always fits."""


class Origin(BaseModel):
    """Who submits a workflow, under which id, and for what file."""

    model_config = ConfigDict(frozen=True)

    request_id: RequestId
    workflow_id: Name
    namespace: Name
    file_path: FilePath


class WorkflowName(BaseModel):
    """What names a workflow."""

    model_config = ConfigDict(frozen=True)

    workflow_id: Name


class Submission(NamedTuple):
    """A workflow to take in."""

    origin: Origin
    content: bytes
    content_digest: str
    metadata: str
    """A JSON object as text."""

    @property
    def action_id(self) -> str:
        """The id of the action that takes it in: one for each request, whatever else the request says."""
        return str(op_id(f"{COLLECTION}\0{self.origin.namespace}\0{self.origin.request_id}"))

    @property
    def payload(self) -> str:
        """The payload of that action: the same text for the same request."""
        fields = {
            **self.origin.model_dump(),
            "size_bytes": len(self.content),
            "content_digest": self.content_digest,
        }
        return f'{to_json(fields)[:-1]},"metadata":{self.metadata}}}'


class WorkflowState(StrEnum):
    """Where a workflow is."""

    PENDING = "PENDING"
    PROCESSING = "PROCESSING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do."""
        return self in (WorkflowState.COMPLETED, WorkflowState.FAILED)


class EndedStep(NamedTuple):
    """A step that was done, or that failed for good."""

    name: str
    attempt_count: int
    end_time: datetime


class Workflow(NamedTuple):
    """A workflow as its state in the store has it."""

    workflow_id: str
    state: WorkflowState
    version: int
    namespace: str
    file_path: str
    size_bytes: int
    content_digest: str
    metadata: Mapping[str, Any]
    steps: Sequence[EndedStep]
    stamp: Mapping[str, Any] | None
    """A stamp as JSON has it, under the names of its fields."""
    failure: Mapping[str, Any] | None
    """step, attempt_count, code, reason and message."""
    submit_time: datetime
    start_time: datetime | None
    end_time: datetime | None


class StepName(StrEnum):
    """The steps that this node knows how to do."""

    VALIDATE_INPUT = "validate_input"
    HASH_GENERATION = "hash_generation"
    STAMP_CREATION = "stamp_creation"
    EVENT_PUBLISHING = "event_publishing"


class Retry(BaseModel):
    """How a step is tried again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_attempts: int = Field(gt=0)
    initial_backoff_seconds: float = Field(gt=0)
    max_backoff_seconds: float = Field(gt=0)

    def backoff(self, attempt_count: int, chance: float) -> float:
        """Seconds to wait after `attempt_count` attempts; `chance`, from 0 to 1, spreads those who failed together."""
        # Doubled no more than the largest wait needs: a step may be tried for minutes, and 2.0**1024 overflows.
        doubled = self.initial_backoff_seconds * 2.0 ** min(attempt_count - 1, 30)
        return min(self.max_backoff_seconds, doubled) * (1 + chance) / 2


class Step(BaseModel):
    """A step as the contract has it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: StepName
    timeout_seconds: float = Field(gt=0)
    """Of one attempt."""
    total_timeout_seconds: float = Field(gt=0)
    """Within this every attempt begins; the last one has its own time, so that it ends with its own reason."""
    retry: Retry

    def wait(self, failure: Exception, attempt_count: int, elapsed: float, chance: float) -> float | None:
        """Seconds until the next attempt, `elapsed` seconds after the first began; None where the step has failed for good.

        A refusal that says that trying later may help is tried again while time is left; any other refusal never; a fault
        that is no refusal as often as the contract says.
        """
        if isinstance(failure, BridgeError):
            if not is_transient(failure):
                return None
        elif attempt_count >= self.retry.max_attempts:
            return None
        backoff = self.retry.backoff(attempt_count, chance)
        return backoff if elapsed + backoff < self.total_timeout_seconds else None


class Coordination(BaseModel):
    """The workflow_coordination subcontract: the steps in their order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: tuple[Step, ...] = Field(min_length=1)

    @field_validator("steps")
    @classmethod
    def _each_once(cls, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        names = [step.name for step in steps]
        if len(set(names)) < len(names):
            raise ValueError("a step must not stand twice")
        return steps

    def remaining(self, workflow: Workflow) -> Iterator[Step]:
        """The steps that are not done yet, in order."""
        done = {step.name for step in workflow.steps}
        return (step for step in self.steps if step.name not in done)


def is_transient(error: BridgeError) -> bool:
    """Whether the same call may succeed later: the other node is away, busy or slow, or another writer came first."""
    return isinstance(error, Unavailable | ResourceExhausted | DeadlineExceeded | Aborted)


def default_workflow_id(namespace: str, request_id: str) -> str:
    """The id of a workflow whose submission names none."""
    return str(op_id(f"{namespace}\0{request_id}"))


def digest_of(content: bytes) -> str:
    """BLAKE3 as 64 hex digits."""
    return blake3(content).hexdigest()


def key_of(workflow_id: str) -> str:
    """The key of a workflow's state."""
    return f"{COLLECTION}/{workflow_id}"


def workflow_id_of(key: str) -> str:
    """The workflow whose state the key has."""
    return key.removeprefix(f"{COLLECTION}/")


def action_id(workflow_id: str, action_type: str, step: str, epoch: int) -> str:
    """The id of what a runner reports: one for each owner, so that what an owner sends twice takes effect once."""
    return str(op_id(f"{workflow_id}\0{action_type}\0{step}\0{epoch}"))


def effect_id(workflow_id: str, step: str) -> str:
    """The request_id of a step's effect, the same on every attempt of every owner."""
    plain = f"{workflow_id}/{step}"
    return plain if len(plain) <= REQUEST_ID_CHARACTERS else f"{digest_of(workflow_id.encode())}/{step}"


def check_content(workflow: Workflow, size: int, digest: str) -> None:
    """Raises ContentMismatch unless the workflow was submitted with content of this size and digest."""
    if (size, digest) != (workflow.size_bytes, workflow.content_digest):
        raise ContentMismatch(metadata={"digest": workflow.content_digest, "actual_digest": digest})


def refusal(error: BridgeError, origin: Origin) -> BridgeError:
    """What the submission is refused with where the reducer refused its action with `error`."""
    match error.reason:
        case errors_pb2.ERROR_REASON_ACTION_ID_REUSED:
            return RequestIdReused(metadata={"request_id": origin.request_id, "namespace": origin.namespace})
        case errors_pb2.ERROR_REASON_ILLEGAL_TRANSITION:
            return WorkflowIdInUse(metadata={"workflow_id": origin.workflow_id})
        case _:
            return error


def workflow_of(state_json: str, version: int) -> Workflow:
    """The workflow whose state at `version` is this."""
    state = pydantic_core.from_json(state_json)
    return Workflow(
        workflow_id=state["workflow_id"],
        state=WorkflowState(state["state"]),
        version=version,
        namespace=state["namespace"],
        file_path=state["file_path"],
        size_bytes=state["size_bytes"],
        content_digest=state["content_digest"],
        metadata=state["metadata"],
        steps=[EndedStep(step["name"], step["attempt_count"], _time(step["end_time"])) for step in state["steps"]],
        stamp=state.get("stamp"),
        failure=state.get("failure"),
        submit_time=_time(state["submit_time"]),
        start_time=_optional_time(state.get("start_time")),
        end_time=_optional_time(state.get("end_time")),
    )


def completion(step: str, attempt_count: int, result: Mapping[str, Any]) -> str:
    """The payload of `step_completed`."""
    return to_json({"step": step, "attempt_count": attempt_count, "result": result})


def failure(step: str, attempt_count: int, error: Exception) -> str:
    """The payload of `failed`. Of a fault that is no refusal nothing is told: it may quote what is internal."""
    code, reason, message = _FAULT
    if isinstance(error, BridgeError):
        code, reason, message = error.code, error.reason_name, error.message
    return to_json({"step": step, "attempt_count": attempt_count, "code": code, "reason": reason, "message": message})


def to_json(value: Mapping[str, Any]) -> str:
    """JSON text without white space, in the order of the fields."""
    # pydantic's own: the standard library's takes four times as long, a dozen times a workflow.
    return pydantic_core.to_json(value).decode()


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _optional_time(text: str | None) -> datetime | None:
    return None if text is None else _time(text)
