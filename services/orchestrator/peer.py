"""The calls to the other nodes: concurrent callers share the messages of the Batch RPCs. When to call, and what an answer means for
a workflow, is the callers'.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import BaseModel, ConfigDict, Field

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.reducer.v1 import reducer_pb2, reducer_pb2_grpc
from omninode.bridge.stamping.v1 import stamping_pb2, stamping_pb2_grpc
from omninode.bridge.store.v1 import store_pb2, store_pb2_grpc
from services.chassis.coalesce import Coalescer
from services.chassis.errors import KINDS, BridgeError, from_message
from services.chassis.routing import Router
from services.orchestrator.domain import (
    COLLECTION,
    REDUCER,
    Fenced,
    ReducerGaveUp,
    StepName,
    Submission,
    Workflow,
    WorkflowNotFound,
    action_id,
    effect_id,
    key_of,
    workflow_id_of,
    workflow_of,
)

_CHUNK_BYTES = 256 * 1024
"""A message of an upload: large enough to be few, small enough to pass between other calls."""
_ANSWERED = 2
"""Times that metadata stands in the answer to a workflow's last report: in the state, and in its stamp."""
_MESSAGE_ACTIONS = 500
"""What the reducer takes in one message."""
_REPORT_ACTIONS = 6
"""Of a workflow's last report: started, four steps, completed."""


class MessageSettings(BaseModel):
    """How messages to other nodes are shared."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    inline_bytes: int = Field(256 * 1024, ge=0, le=1024 * 1024)
    """Content up to this shares messages with others; larger content is stored and stamped by itself, or it would hold them up."""
    message_bytes: int = Field(8 * 1024 * 1024, gt=0, le=12 * 1024 * 1024)
    """Contents and metadata in one message, which with all that stands beside them stays below 16 MiB, and so does its answer."""
    upload_seconds: float = Field(60.0, gt=0)
    """For content that is stored or read by itself; what reads it within a step has that step's time besides."""


class Owner(NamedTuple):
    """Under which lease a workflow runs, and on whose behalf."""

    lease: str
    epoch: int
    correlation_id: str
    """Of the call that submitted the workflow; empty where it is not known."""


class Report(NamedTuple):
    """Something that happened to a workflow, and when."""

    occur_time: Timestamp
    type: str
    step: str
    """Empty where it is about no step."""
    payload: str


class Reduced(NamedTuple):
    """What became of actions of one workflow: all took effect, now or before."""

    created: bool
    """Whether the first of them took effect now."""
    partition: int
    version: int
    state_json: str | None
    """The state after the last of them; None where that took effect before, or the answer left it out."""


class _PeerFault(Exception):
    """Another node met a bug of its own with an item."""


class _Group(NamedTuple):
    """Actions of one workflow that are sent together."""

    actions: Sequence[reducer_pb2.Action]
    weight: int


class ReducerReplica:
    """One replica of the reducer: callers share its messages."""

    def __init__(self, stub: reducer_pb2_grpc.ReducerServiceStub, settings: MessageSettings) -> None:
        self._stub = stub
        self._groups: Coalescer[_Group, Reduced] = Coalescer(
            self._reduce,
            key=lambda group: group.actions[0].key,
            max_batch=_MESSAGE_ACTIONS // _REPORT_ACTIONS,
            weight=lambda group: group.weight,
            max_weight=settings.message_bytes,
        )

    async def aclose(self) -> None:
        """Takes no more calls, and returns when those under way have their answers."""
        await self._groups.aclose()

    async def reduce(self, group: _Group) -> Reduced:
        """What became of the group."""
        return await self._groups.submit(group)

    async def _reduce(self, groups: Sequence[_Group]) -> list[Reduced | BridgeError]:
        actions = [action for group in groups for action in group.actions]
        request = reducer_pb2.BatchReduceRequest(actions=actions, last_states_only=True)
        response = await self._stub.BatchReduce(request)
        results = iter(response.results)
        return [_reduced(list(islice(results, len(group.actions)))) for group in groups]


class Peer:
    """The stamping node, the reducer and the store, for one orchestrator.

    `now` gives nanoseconds since the epoch. Every method raises the kinds of services.chassis.errors.
    """

    def __init__(
        self,
        *,
        stamping: stamping_pb2_grpc.StampingServiceStub,
        reducers: Router[ReducerReplica],
        store: store_pb2_grpc.StoreServiceStub,
        settings: MessageSettings,
        actor: str,
        now: Callable[[], int],
    ) -> None:
        self._stamping = stamping
        self._reducers = reducers
        self._store = store
        self._settings = settings
        self._actor = actor
        self._now = now
        self._stamps: Coalescer[stamping_pb2.CreateStampRequest, stamping_pb2.CreateStampResponse] = Coalescer(
            self._create_stamps,
            key=lambda request: request.request_id,
            weight=lambda request: request.ByteSize(),
            max_weight=settings.message_bytes,
        )
        self._states: Coalescer[str, store_pb2.State] = Coalescer(self._get_states, key=lambda key: key)

    async def aclose(self) -> None:
        """Takes no more calls, and returns when those under way have their answers; reducers are their owner's to close."""
        for coalescer in (self._stamps, self._states):
            await coalescer.aclose()

    async def submit(self, submissions: Sequence[Submission], correlation_id: str) -> list[Reduced | Exception]:
        """Takes workflows in, each durable with its content when this returns, or in its place why it was refused."""
        groups: list[_Group | BridgeError] = []
        for submission in submissions:
            try:
                groups.append(await self._submission(submission, correlation_id))
            except BridgeError as error:
                groups.append(error)
        return await asyncio.gather(*(_outcome(group, self._reduce) for group in groups))

    def report_of(self, action_type: str, step: str = "", payload: str = "{}") -> Report:
        """What happened just now."""
        return Report(self._time(), action_type, step, payload)

    async def report(self, workflow: Workflow, owner: Owner, reports: Sequence[Report]) -> Reduced:
        """Sends what happened to a workflow, in one commit. Raises Fenced where the lease is not held with the epoch any more."""
        guard = store_pb2.Guard(lease=owner.lease, epoch=owner.epoch, condition=store_pb2.GUARD_CONDITION_HELD)
        actions = [
            reducer_pb2.Action(
                key=key_of(workflow.workflow_id),
                action_id=action_id(workflow.workflow_id, report.type, report.step, owner.epoch),
                reducer=REDUCER,
                type=report.type,
                payload_json=report.payload,
                occur_time=report.occur_time,
                correlation_id=owner.correlation_id,
                guards=(guard,),
                effect_id=effect_id(workflow.workflow_id, report.step) if report.step else "",
                actor=self._actor,
            )
            for report in reports
        ]
        weight = _ANSWERED * max(len(report.payload) for report in reports)
        return await self._reduce(_Group(actions, weight))

    async def check_content(self, submission: Submission) -> None:
        """Raises InvalidArgument, CONTENT_TOO_LARGE, where the content is too large without its own stamps, too."""
        origin = submission.origin
        request = stamping_pb2.ValidateStampRequest(
            content=submission.content, file_path=origin.file_path, namespace=origin.namespace
        )
        await self._stamping.ValidateStamp(request)

    def shares_messages(self, size: int) -> bool:
        """Whether content of `size` bytes goes in messages with others."""
        return size <= self._settings.inline_bytes

    async def create_stamp(self, workflow: Workflow, content: bytes) -> stamping_pb2.CreateStampResponse:
        """Stamps the workflow's content, the same on every attempt."""
        request = stamping_pb2.CreateStampRequest(
            request_id=effect_id(workflow.workflow_id, StepName.STAMP_CREATION),
            content=content,
            namespace=workflow.namespace,
            file_path=workflow.file_path,
            metadata=_struct(workflow.metadata) if workflow.metadata else None,
        )
        if self.shares_messages(len(content)):
            return await self._stamps.submit(request)
        return await self._stamping.CreateStamp(request)

    async def workflow(self, workflow_id: str) -> Workflow:
        """The workflow as it is now. Raises WorkflowNotFound."""
        try:
            state = await self._states.submit(key_of(workflow_id))
        except BridgeError as error:
            if error.reason != errors_pb2.ERROR_REASON_STATE_NOT_FOUND:
                raise
            raise WorkflowNotFound(metadata={"workflow_id": workflow_id}) from error
        return await self._workflow(state)

    async def open_workflows(self, partitions: Sequence[int]) -> AsyncIterator[list[tuple[str, int]]]:
        """The ids and partitions of the workflows in these partitions that have not ended, a page at a time."""
        token = ""
        while True:
            request = store_pb2.ListOpenKeysRequest(collection=COLLECTION, partitions=partitions, page_token=token)
            response = await self._store.ListOpenKeys(request)
            yield [(workflow_id_of(found.key), found.partition) for found in response.keys]
            token = response.next_page_token
            if not token:
                return

    async def content(self, digest: str) -> bytes:
        """Stored content."""
        request = store_pb2.GetBlobRequest(digest=digest)
        responses = self._store.GetBlob(request, timeout=self._settings.upload_seconds)
        return b"".join([response.chunk async for response in responses])

    async def _submission(self, submission: Submission, correlation_id: str) -> _Group:
        origin = submission.origin
        action = reducer_pb2.Action(
            key=key_of(origin.workflow_id),
            action_id=submission.action_id,
            reducer=REDUCER,
            type="submitted",
            payload_json=submission.payload,
            occur_time=self._time(),
            correlation_id=correlation_id,
            actor=self._actor,
        )
        if self.shares_messages(len(submission.content)):
            action.blobs.add(digest=submission.content_digest, content=submission.content)
        else:
            await self._store.PutBlob(_frames(submission), timeout=self._settings.upload_seconds)
            action.blob_refs.append(submission.content_digest)
        return _Group([action], action.ByteSize())

    async def _reduce(self, group: _Group) -> Reduced:
        return await self._reducers.call(group.actions[0].key, lambda replica: replica.reduce(group))

    async def _create_stamps(
        self, requests: Sequence[stamping_pb2.CreateStampRequest]
    ) -> list[stamping_pb2.CreateStampResponse | BridgeError]:
        batch = stamping_pb2.BatchCreateStampsRequest(items=requests)
        response = await self._stamping.BatchCreateStamps(batch)
        return [result.stamped if result.HasField("stamped") else _refused(result.error) for result in response.results]

    async def _get_states(self, keys: Sequence[str]) -> list[store_pb2.State | BridgeError]:
        response = await self._store.BatchGetStates(store_pb2.BatchGetStatesRequest(keys=keys))
        return [result.state if result.HasField("state") else _refused(result.error) for result in response.results]

    async def _workflow(self, state: store_pb2.State) -> Workflow:
        if state.state_omitted:
            state = (await self._store.GetState(store_pb2.GetStateRequest(key=state.key))).state
        workflow = workflow_of(state.state_json, state.version)
        if key_of(workflow.workflow_id) != state.key:
            raise ValueError(f"the state of {state.key} is that of {workflow.workflow_id}")
        return workflow

    def _time(self) -> Timestamp:
        microseconds = self._now() // 1000
        return Timestamp(seconds=microseconds // 1_000_000, nanos=microseconds % 1_000_000 * 1000)


async def _outcome(group: _Group | BridgeError, reduce: Callable[[_Group], Awaitable[Reduced]]) -> Reduced | Exception:
    """What became of a group, a failure in its place."""
    if isinstance(group, BridgeError):
        return group
    try:
        return await reduce(group)
    except Exception as error:
        return error


def stamp_json(stamp: stamping_pb2.Stamp) -> dict[str, Any]:
    """A stamp as JSON has it, under the names of its fields."""
    return json_format.MessageToDict(stamp, preserving_proto_field_name=True)


def _struct(metadata: Mapping[str, Any]) -> Struct:
    struct = Struct()
    struct.update(metadata)
    return struct


async def _frames(submission: Submission) -> AsyncIterator[store_pb2.PutBlobRequest]:
    yield store_pb2.PutBlobRequest(header=store_pb2.PutBlobHeader(digest=submission.content_digest))
    content = memoryview(submission.content)
    for start in range(0, len(content), _CHUNK_BYTES):
        yield store_pb2.PutBlobRequest(chunk=bytes(content[start : start + _CHUNK_BYTES]))


def _reduced(results: Sequence[reducer_pb2.BatchReduceResult]) -> Reduced | BridgeError:
    for result in results:
        match result.WhichOneof("outcome"):
            case "error":
                return _refused(result.error)
            case "fenced":
                return Fenced()
            case "gave_up":
                return ReducerGaveUp()
    last = results[-1]
    created = results[0].HasField("committed")
    if last.HasField("committed"):
        folded = last.committed
        return Reduced(created, folded.commit.partition, folded.version, folded.state_json or None)
    return Reduced(created, last.duplicate.commit.partition, last.duplicate.version, None)


def _refused(error: errors_pb2.Error) -> BridgeError:
    """The refusal of an item. Raises _PeerFault where it is none: the batch is then sent again in halves, until it stands alone."""
    if error.code not in KINDS:
        raise _PeerFault(error.message)
    return from_message(error)
