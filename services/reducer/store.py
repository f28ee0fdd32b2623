"""The reducer's way to the store: commits and reads of concurrent keys share the messages of the Batch RPCs; leases go alone.

No rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from pydantic import Field
from pydantic_core import from_json

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.store.v1 import store_pb2, store_pb2_grpc
from services.chassis import timestamp
from services.chassis.client import ClientSettings
from services.chassis.coalesce import Coalescer
from services.chassis.errors import KINDS, BridgeError, FieldViolation
from services.reducer.domain import ABSENT, Action, Current, Event, Projection

Answer: TypeAlias = store_pb2.Committed | store_pb2.Conflict | store_pb2.Duplicate | store_pb2.Fenced
"""The outcomes of a commit that are results and not errors."""

_NEVER = 2**62
"""A version that no key reaches: a commit that expects it asks only whether its actions are known."""
_BATCH_CHARACTERS = 4 * 1024 * 1024
"""States, events and blobs of one message: characters take up to four bytes, a message 16 MiB."""


class StoreSettings(ClientSettings):
    """Where the store is, and how it is called."""

    target: str = Field("127.0.0.1:50054", min_length=1)
    """As services.chassis.client takes it; by default the store of the same machine."""


class Commit(NamedTuple):
    """A new state of a key, and the actions that led to it, all with the same guards."""

    key: str
    expected: int
    """The version that the key must be at; 0 where it must not exist."""
    state_json: str
    schema_version: int
    actions: Sequence[tuple[Action, Sequence[Event]]]
    projection: Projection | None
    final: bool


def question(actions: Sequence[Action]) -> Commit:
    """A commit that changes nothing: the answer is a Duplicate that names the known actions, or else Fenced or a Conflict."""
    # Without blobs: one that is missing would be the answer.
    asked = [(action.model_copy(update={"blobs": (), "blob_refs": ()}), ()) for action in actions]
    return Commit(actions[0].key, _NEVER, "{}", 0, asked, None, False)


class Store:
    """The store, for one reducer. Every method raises the kinds of services.chassis.errors."""

    def __init__(self, stub: store_pb2_grpc.StoreServiceStub, max_waiting: int) -> None:
        """At most `max_waiting` commits, and as many reads, wait for their turn."""
        self._stub = stub
        self._commits: Coalescer[Commit, Answer] = Coalescer(
            self._try_commits,
            key=lambda commit: commit.key,
            weight=_weight,
            max_weight=_BATCH_CHARACTERS,
            max_waiting=max_waiting,
        )
        self._reads: Coalescer[str, Current] = Coalescer(self._get_states, key=lambda key: key, max_waiting=max_waiting)

    async def aclose(self) -> None:
        """Takes no more calls, and returns when those under way have their answers."""
        await self._commits.aclose()
        await self._reads.aclose()

    async def try_commit(self, commit: Commit) -> Answer:
        """Commits, or says what stood against it. The commits of one key are made in the order of the calls."""
        return await self._commits.submit(commit)

    async def get(self, key: str) -> Current:
        """The key as it stands."""
        return await self._reads.submit(key)

    async def actual(self, conflict: store_pb2.Conflict) -> Current:
        """The key as the conflict found it."""
        return await self._current(conflict.current) if conflict.HasField("current") else ABSENT

    async def acquire(self, lease: str, owner: str, ttl: float) -> int | None:
        """The epoch with which `owner` now holds the lease, for `ttl` seconds; None where another does."""
        request = store_pb2.AcquireLeaseRequest(name=lease, owner=owner)
        request.ttl.FromNanoseconds(round(ttl * 1_000_000_000))
        answer = await self._stub.AcquireLease(request)
        return answer.lease.epoch if answer.acquired else None

    async def holder(self, lease: str) -> str | None:
        """Who holds the lease; None where nobody does."""
        request = store_pb2.ListLeasesRequest(prefix=lease, page_size=1)
        held = (await self._stub.ListLeases(request)).leases
        return held[0].owner if held else None

    async def release(self, lease: str, owner: str, epoch: int) -> None:
        """Ends the lease, where it is still held so."""
        await self._stub.ReleaseLease(store_pb2.ReleaseLeaseRequest(name=lease, owner=owner, epoch=epoch))

    async def append(self, request_id: str, events: Sequence[store_pb2.Event]) -> None:
        """Appends events that no commit bears, once for each request_id."""
        await self._stub.AppendEvents(store_pb2.AppendEventsRequest(request_id=request_id, events=events))

    async def _try_commits(self, commits: Sequence[Commit]) -> list[Answer | BridgeError]:
        request = store_pb2.BatchTryCommitRequest()
        for commit in commits:
            _fill(request.items.add(), commit)
        response = await self._stub.BatchTryCommit(request)
        return [_answer(result, f"items[{index}].") for index, result in enumerate(response.results)]

    async def _get_states(self, keys: Sequence[str]) -> list[Current | BridgeError]:
        response = await self._stub.BatchGetStates(store_pb2.BatchGetStatesRequest(keys=keys))
        return [
            await self._current(result.state) if result.HasField("state") else _absence(result.error, f"keys[{index}]")
            for index, result in enumerate(response.results)
        ]

    async def _current(self, state: store_pb2.State) -> Current:
        if state.state_omitted:
            state = (await self._stub.GetState(store_pb2.GetStateRequest(key=state.key))).state
        text = state.state_json
        return Current(state.version, from_json(text), len(text), state.schema_version)


def _weight(commit: Commit) -> int:
    events = sum(len(event.payload_json) for _, events in commit.actions for event in events)
    return len(commit.state_json) + events + sum(action.size for action, _ in commit.actions)


def _fill(item: store_pb2.TryCommitRequest, commit: Commit) -> None:
    """Fills the commit in its place: the messages of a batch would be copied twice on their way into it."""
    item.key = commit.key
    item.expected.version = commit.expected
    item.state_json = commit.state_json
    item.schema_version = commit.schema_version
    item.final = commit.final
    if commit.projection is not None:
        item.projection.tag = commit.projection.tag
        item.projection.namespace = commit.projection.namespace
        item.projection.indices.update(commit.projection.indices)
    for guard in commit.actions[0][0].guards:
        item.guards.add(lease=guard.lease, epoch=guard.epoch, condition=guard.condition.value)
    for action, events in commit.actions:
        for blob in action.blobs:
            item.blobs.add(digest=blob.digest, content=blob.content)
        item.blob_refs.extend(action.blob_refs)
        _fill_action(item.actions.add(), action, events)


def _fill_action(message: store_pb2.CommitAction, action: Action, events: Sequence[Event]) -> None:
    message.action_id = str(action.action_id)
    message.fingerprint = action.fingerprint()
    message.type = action.type
    provenance = message.provenance
    provenance.effect_id = action.effect_id
    provenance.actor = action.actor
    timestamp.fill(provenance.occur_time, action.occur_time)
    provenance.correlation_id = action.correlation_id
    for event in events:
        _fill_event(message.events.add(), event)


def _fill_event(message: store_pb2.Event, event: Event) -> None:
    # One by one: keyword arguments take half as long again.
    message.kind = store_pb2.EventKind.ValueType(event.kind)
    message.event_type = event.event_type
    message.topic = event.topic
    message.payload_json = event.payload_json


def _answer(result: store_pb2.BatchTryCommitResult, prefix: str) -> Answer | BridgeError:
    match result.WhichOneof("outcome"):
        case "committed":
            return result.committed
        case "conflict":
            return result.conflict
        case "duplicate":
            return result.duplicate
        case "fenced":
            return result.fenced
        case _:
            return _refusal(result.error, prefix)


def _absence(error: errors_pb2.Error, prefix: str) -> Current | BridgeError:
    return ABSENT if error.reason == errors_pb2.ERROR_REASON_STATE_NOT_FOUND else _refusal(error, prefix)


def _refusal(error: errors_pb2.Error, prefix: str) -> BridgeError:
    """The refusal of an item, with its fields below `prefix` as the caller of this node knows them."""
    return KINDS[error.code](
        error.message,
        reason=error.reason,
        metadata=error.metadata,
        violations=[
            FieldViolation(violation.field.removeprefix(prefix), violation.description)
            for violation in error.field_violations
        ],
    )
