"""The store's messages and the domain's values, each way. Pure; no rule is made here."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty

from omninode.bridge.store.v1 import store_pb2
from services.chassis import timestamp
from services.chassis.errors import BridgeError, invalid_field, to_message
from services.store.domain import (
    ABSENT,
    ANY,
    UNSAID,
    Commit,
    Committed,
    Conflict,
    Duplicate,
    Fenced,
    Lease,
    LeaseRequest,
    NotApplied,
    Outcome,
    Provenance,
    Renewal,
    State,
    StoredEvent,
    check_blobs,
)


def to_commit(request: store_pb2.TryCommitRequest) -> Commit:
    """The commit that a request asks for. Raises pydantic's ValidationError, InvalidArgument, BlobDigestMismatch."""
    # Mappings where commits have much, and nothing where they have nothing: pydantic reads a message's attributes at twice the
    # cost, and validation is half of a commit's.
    commit = Commit.model_validate(
        {
            "key": request.key,
            "expected": _expected(request.expected),
            "state_json": request.state_json,
            "schema_version": request.schema_version,
            "actions": [_action(action) for action in request.actions],
            "projection": _projection(request.projection) if request.HasField("projection") else None,
            "blobs": request.blobs or (),
            "blob_refs": request.blob_refs or (),
            "released_blob_refs": request.released_blob_refs or (),
            "guards": request.guards or (),
            "final": request.final,
            "transient_actions": request.transient_actions,
        }
    )
    if commit.blobs:
        check_blobs(commit.blobs)
    return commit


def _action(action: store_pb2.CommitAction) -> dict[str, object]:
    return {
        "action_id": action.action_id,
        "fingerprint": action.fingerprint,
        "type": action.type,
        "provenance": _provenance(action.provenance) if action.HasField("provenance") else UNSAID,
        "events": [_new_event(event) for event in action.events],
    }


def _projection(projection: store_pb2.ProjectionInput) -> dict[str, object]:
    return {
        "tag": projection.tag,
        "namespace": projection.namespace,
        "indices": projection.indices,
        "extras_json": projection.extras_json,
    }


def _provenance(provenance: store_pb2.Provenance) -> dict[str, object]:
    return {
        "effect_id": provenance.effect_id,
        "actor": provenance.actor,
        "occur_time": provenance.occur_time if provenance.HasField("occur_time") else None,
        "correlation_id": provenance.correlation_id,
    }


def _new_event(event: store_pb2.Event) -> dict[str, object]:
    return {
        "event_id": event.event_id,
        "kind": event.kind,
        "event_type": event.event_type,
        "topic": event.topic,
        "partition_key": event.partition_key,
        "payload_json": event.payload_json,
        "headers": event.headers or {},
    }


def _expected(expectation: store_pb2.Expectation) -> int:
    match expectation.WhichOneof("expected"):
        case "version":
            if expectation.version < 0:
                raise invalid_field("expected.version", "must not be negative", value=str(expectation.version))
            return expectation.version
        case "absent":
            return ABSENT
        case "any":
            return ANY
        case _:
            raise invalid_field("expected", "one of version, absent and any must be set")


def to_lease_request(request: store_pb2.AcquireLeaseRequest) -> LeaseRequest:
    """The lease that a request asks for. Raises ValidationError."""
    return LeaseRequest.model_validate({"name": request.name, "owner": request.owner, "ttl": _timedelta(request.ttl)})


def to_renewal(request: store_pb2.RenewLeasesRequest) -> Renewal:
    """The leases that a request renews. Raises ValidationError."""
    return Renewal.model_validate({"owner": request.owner, "leases": request.leases, "ttl": _timedelta(request.ttl)})


def _timedelta(duration: Duration) -> object:
    try:
        return duration.ToTimedelta()
    except (OverflowError, ValueError):
        raise invalid_field("ttl", "must be 100 ms to 1 hour") from None


def fill_outcome(
    answer: store_pb2.TryCommitResponse | store_pb2.BatchTryCommitResult, outcome: Outcome, allowance: StateAllowance
) -> None:
    """Fills what became of a commit into its place."""
    match outcome:
        case Committed():
            fill_committed(answer.committed, outcome)
        case Conflict():
            _fill_conflict(answer.conflict, outcome, allowance)
        case Duplicate():
            for action in outcome.known:
                known = answer.duplicate.known.add(action_id=str(action.action_id))
                fill_committed(known.committed, action.committed)
                for event in action.events:
                    fill_event(known.events.add(), event)
        case Fenced():
            answer.fenced.lease = outcome.lease
            answer.fenced.current_epoch = outcome.current_epoch


def fill_batch_outcome(
    result: store_pb2.BatchTryCommitResult,
    outcome: Outcome | NotApplied | BridgeError,
    allowance: StateAllowance,
    prefix: str,
) -> None:
    """Fills what became of a batch's item into its place; `prefix` is the item's path in the request."""
    match outcome:
        case BridgeError():
            result.error.CopyFrom(to_message(outcome, prefix))
        case NotApplied():
            result.not_applied.CopyFrom(Empty())
        case _:
            fill_outcome(result, outcome, allowance)


class StateAllowance:
    """How many bytes of states one answer may still hold."""

    def __init__(self, limit: int) -> None:
        self._left = limit

    def takes(self, state: State) -> bool:
        """Whether the state has its place in the answer."""
        size = len(state.state_json)
        # ASCII most often; otherwise the text is longer as UTF-8.
        if not state.state_json.isascii():
            size = len(state.state_json.encode())
        if size > self._left:
            return False
        self._left -= size
        return True


def fill_committed(message: store_pb2.Committed, committed: Committed) -> None:
    """Fills a commit's place."""
    message.version = committed.version
    message.partition = committed.partition
    message.offset = committed.offset
    timestamp.fill(message.commit_time, committed.committed_at)


def _fill_conflict(message: store_pb2.Conflict, conflict: Conflict, allowance: StateAllowance) -> None:
    if conflict.expected == ABSENT:
        message.expected.absent.CopyFrom(Empty())
    else:
        message.expected.version = conflict.expected
    if conflict.current is not None:
        message.actual_version = conflict.current.version
        fill_state(message.current, conflict.current, allowance)


def fill_state(message: store_pb2.State, state: State, allowance: StateAllowance) -> None:
    """Fills a state, without its text where the answer has no room for it."""
    message.key = state.key
    message.version = state.version
    message.schema_version = state.schema_version
    message.final = state.final
    message.partition = state.partition
    timestamp.fill(message.update_time, state.updated_at)
    if allowance.takes(state):
        message.state_json = state.state_json
    else:
        message.state_omitted = True


def to_lease_message(lease: Lease) -> store_pb2.Lease:
    """A lease."""
    message = store_pb2.Lease(name=lease.name, owner=lease.owner, epoch=lease.epoch)
    timestamp.fill(message.expire_time, lease.expires_at)
    return message


def to_lease_messages(leases: Sequence[Lease]) -> list[store_pb2.Lease]:
    """Leases."""
    return [to_lease_message(lease) for lease in leases]


def fill_event(message: store_pb2.Event, event: StoredEvent) -> None:
    """Fills an event of the outbox."""
    message.event_id = str(event.event_id)
    message.kind = store_pb2.EventKind.ValueType(event.kind)
    message.event_type = event.event_type
    message.topic = event.topic
    message.partition_key = event.partition_key
    message.payload_json = event.payload_json
    message.headers.update(event.headers)


def fill_provenance(message: store_pb2.Provenance, provenance: Provenance) -> None:
    """Fills who did an action."""
    message.effect_id = provenance.effect_id
    message.actor = provenance.actor
    message.correlation_id = provenance.correlation_id
    if provenance.occur_time is not None:
        timestamp.fill(message.occur_time, provenance.occur_time)
