"""What a commit, an event, a blob and a lease are, and this node's refusals. Pure: no clock, no ids of its own making."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from enum import IntEnum
from typing import Annotated, Any, NamedTuple, TypeAlias

from blake3 import blake3
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints
from pydantic_core import from_json

from omninode.bridge.errors.v1 import errors_pb2
from services.chassis.boundary import (
    PRINTABLE,
    WITHOUT_NUL,
    Boundary,
    Digest,
    Key,
    LeaseName,
    Name,
    RequestId,
)
from services.chassis.errors import (
    AlreadyExists,
    BridgeError,
    FailedPrecondition,
    FieldViolation,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    invalid_field,
)
from services.chassis.timestamp import to_time

_KIB = 1024
_MIB = 1024 * _KIB


class ActionIdReused(AlreadyExists):
    """The action_id was used before with another fingerprint; the first action stands."""

    reason = errors_pb2.ERROR_REASON_ACTION_ID_REUSED


class RequestIdReused(AlreadyExists):
    """The request_id was used before with other events; the first request stands."""

    reason = errors_pb2.ERROR_REASON_REQUEST_ID_REUSED


class StateNotFound(NotFound):
    """The key has no state."""

    reason = errors_pb2.ERROR_REASON_STATE_NOT_FOUND


class VersionExpired(NotFound):
    """The log does not hold this version of the key any more."""

    reason = errors_pb2.ERROR_REASON_VERSION_EXPIRED


class TooManyConsumers(ResourceExhausted):
    """As many consumers of the outbox are registered as may be; forget one that will not come back."""

    reason = errors_pb2.ERROR_REASON_TOO_MANY_CONSUMERS


class ConsumerNotFound(NotFound):
    """No consumer of this name is registered."""

    reason = errors_pb2.ERROR_REASON_CONSUMER_NOT_FOUND


class BlobMissing(FailedPrecondition):
    """A blob that the commit refers to is not stored; put it first."""

    reason = errors_pb2.ERROR_REASON_BLOB_MISSING


class BlobNotFound(NotFound):
    """There is no blob of this digest."""

    reason = errors_pb2.ERROR_REASON_BLOB_NOT_FOUND


class BlobDigestMismatch(InvalidArgument):
    """The bytes do not have the digest that was said of them."""

    reason = errors_pb2.ERROR_REASON_BLOB_DIGEST_MISMATCH


class BlobTooLarge(InvalidArgument):
    """The blob is larger than the store takes."""

    reason = errors_pb2.ERROR_REASON_CONTENT_TOO_LARGE


class StreamOutOfOrder(InvalidArgument):
    """A stream begins with one header, and only chunks follow."""

    reason = errors_pb2.ERROR_REASON_STREAM_OUT_OF_ORDER


class Limits(BaseModel):
    """What one call may hold."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    batch_items: int = Field(500, gt=0)
    """Items of a batch: what one SQL statement takes best."""
    answer_state_bytes: int = Field(8 * _MIB, ge=_MIB, le=12 * _MIB)
    """States in one answer, so that it stays below the 16 MiB of a message with all that stands beside them; one always fits."""
    consumers: int = Field(100, gt=0)
    """Registered consumers of the outbox: each keeps what it has not read, and a forgotten one keeps it for ever."""
    blob_bytes: int = Field(64 * _MIB, gt=0)
    """The largest blob; a workflow's content is at most 10 MiB."""
    blob_chunk_bytes: int = Field(_MIB, gt=0, le=_MIB)
    """A row of a streamed blob, and a message of GetBlob: large enough to be few, small enough to pass between other rows."""


class LogSettings(BaseModel):
    """How the log is laid out."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    partitions: int | None = Field(None, ge=1, le=1024)
    """How many partitions a new database gets, 16 where it is unset: enough for a dozen replicas to share. A database keeps
    its number; a setting that contradicts it is refused."""


STATE_BYTES = _MIB
"""A state; it is written twice for each commit, and read whole."""
PAYLOAD_BYTES = 256 * _KIB
"""An event's payload; Kafka takes messages of 1 MiB."""
EXTRAS_BYTES = 64 * _KIB
"""A projection's extras; they stand in every page of a list."""
INLINE_BLOB_BYTES = _MIB
"""A blob in a commit; it passes through one SQL statement with everyone else's."""
_HEADERS_BYTES = 8 * _KIB
_EVENTS_BYTES = 8 * _MIB
"""Payloads of one action's events: an action is one item of a feed, and goes out in one message."""
# After an even number of backslashes, which are escaped backslashes, and not after an odd one.
_NUL = "\\u0000"
_ESCAPED_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


def json_object(limit: int) -> AfterValidator:
    """A validator of text: a JSON object of at most `limit` bytes without U+0000; empty text means `{}`."""

    def check(text: str) -> str:
        if text in ("", "{}"):
            return "{}"
        if len(text) * 4 > limit and len(text.encode()) > limit:
            raise ValueError(f"must be at most {limit} bytes")
        try:
            value = from_json(text, allow_inf_nan=False)
        except ValueError as error:
            raise ValueError(f"must be JSON: {error}") from None
        if not isinstance(value, dict):
            raise ValueError("must be a JSON object")
        # The raw character cannot stand in JSON. The value would not do: of a name that is given twice it holds the last only.
        if _NUL in text and _ESCAPED_NUL.search(text):
            raise ValueError("must not hold U+0000")
        return text

    return AfterValidator(check)


def _some(text: str) -> str:
    if not text:
        raise ValueError("must be a JSON object")
    return text


def _unset(text: str) -> str:
    if text:
        raise ValueError("must be empty: the store makes it from the action_id")
    return text


def _not_empty(items: tuple[Any, ...]) -> tuple[Any, ...]:
    # Not by min_length: that counts the good items only, and would blame the whole for each bad one.
    if not items:
        raise ValueError("must hold at least 1 item")
    return items


def _headers(headers: dict[str, str]) -> dict[str, str]:
    if headers and sum(len(name.encode()) + len(value.encode()) for name, value in headers.items()) > _HEADERS_BYTES:
        raise ValueError(f"must be at most {_HEADERS_BYTES} bytes in all")
    return headers


def _time(value: Any) -> datetime | None:
    """A protobuf Timestamp as a time; None where there is none."""
    return None if value is None else to_time(value)


Collection = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,63}$")]
PartitionNumber = Annotated[int, Field(ge=0, le=32767)]
"""As large as its column; a database has 1,024 at most."""
Owner = Annotated[str, StringConstraints(max_length=255, pattern=PRINTABLE)]
LeasePrefix = Annotated[str, StringConstraints(max_length=255, pattern=r"^[A-Za-z0-9_./-]*$")]
Epoch = Annotated[int, Field(ge=0)]
Ttl = Annotated[timedelta, Field(ge=timedelta(milliseconds=100), le=timedelta(hours=1))]
"""Below a tenth of a second renewals would be most of the traffic; after an hour a dead owner should be missed."""


_Short = Annotated[str, StringConstraints(max_length=255, pattern=WITHOUT_NUL)]
_HeaderValue = Annotated[str, StringConstraints(max_length=_HEADERS_BYTES, pattern=WITHOUT_NUL)]
_Long = Annotated[str, StringConstraints(max_length=512, pattern=WITHOUT_NUL)]


class EventKind(IntEnum):
    """What an event is for; the numbers of the contract."""

    EVENT = 1
    INTENT = 2


class Event(Boundary):
    """An event for the outbox."""

    event_id: Annotated[str, AfterValidator(_unset)]
    kind: EventKind
    event_type: Name
    topic: Name
    partition_key: _Long
    payload_json: Annotated[str, json_object(PAYLOAD_BYTES)]
    headers: Annotated[dict[_Short, _HeaderValue], Field(max_length=64), AfterValidator(_headers)]


class Provenance(Boundary):
    """Who did an action, and on whose behalf; empty text and None where it is unsaid."""

    effect_id: _Long
    actor: _Short
    occur_time: Annotated[datetime | None, BeforeValidator(_time)]
    correlation_id: Annotated[str, StringConstraints(max_length=128, pattern=WITHOUT_NUL)]


UNSAID = Provenance(effect_id="", actor="", occur_time=None, correlation_id="")
"""The provenance of an action that has none."""


def _deliverable(events: tuple[Event, ...]) -> tuple[Event, ...]:
    # So few cannot be too much, and most actions have one or two.
    if len(events) * PAYLOAD_BYTES > _EVENTS_BYTES:
        size = sum(len(event.payload_json.encode()) for event in events)
        if size > _EVENTS_BYTES:
            raise ValueError(f"must have payloads of at most {_EVENTS_BYTES} bytes in all")
    return events


class Action(Boundary):
    """One action that a commit records."""

    action_id: uuid.UUID
    fingerprint: Annotated[bytes, Field(min_length=32, max_length=32)]
    type: Name
    provenance: Provenance
    events: Annotated[tuple[Event, ...], Field(max_length=100), AfterValidator(_deliverable)]


class Projection(Boundary):
    """What the projection of a key is to show."""

    tag: _Short
    namespace: _Short
    indices: Annotated[dict[_Short, _Short], Field(max_length=16)]
    extras_json: Annotated[str, json_object(EXTRAS_BYTES)]


class Condition(IntEnum):
    """What a guard asks of its lease; the numbers of the contract."""

    HELD = 1
    NOT_HELD = 2


class Guard(Boundary):
    """A lease that a commit depends on."""

    lease: LeaseName
    epoch: Epoch
    condition: Condition

    @property
    def is_held(self) -> bool:
        """Whether the guard asks that the lease is held."""
        return self.condition is Condition.HELD


class Blob(Boundary):
    """Bytes by their digest."""

    digest: Digest
    content: Annotated[bytes, Field(max_length=INLINE_BLOB_BYTES)]


def _each_once(actions: tuple[Action, ...]) -> tuple[Action, ...]:
    if len(actions) > 1 and len({action.action_id for action in actions}) < len(actions):
        raise ValueError("must not hold the same action_id twice")
    return actions


ANY = -1
"""The expectation of a commit that follows whatever is current."""
ABSENT = 0
"""The expectation that the key does not exist."""


class Commit(Boundary):
    """A new state of a key. `expected` is the current version, ABSENT or ANY."""

    key: Key
    expected: Annotated[int, Field(ge=ANY)]
    state_json: Annotated[str, AfterValidator(_some), json_object(STATE_BYTES)]
    schema_version: Annotated[int, Field(ge=0)]
    actions: Annotated[
        tuple[Action, ...], Field(max_length=500), AfterValidator(_not_empty), AfterValidator(_each_once)
    ]
    projection: Projection | None
    blobs: Annotated[tuple[Blob, ...], Field(max_length=16)]
    blob_refs: Annotated[tuple[Digest, ...], Field(max_length=100)]
    released_blob_refs: Annotated[tuple[Digest, ...], Field(max_length=100)]
    guards: Annotated[tuple[Guard, ...], Field(max_length=16)]
    final: bool
    transient_actions: bool

    @property
    def released(self) -> set[str]:
        """Digests of the blobs to which the key refers no more: not those that the commit names, too."""
        if not self.released_blob_refs:
            return set()
        return set(self.released_blob_refs).difference(self.blob_refs, (blob.digest for blob in self.blobs))


class Committed(NamedTuple):
    """A commit's place."""

    version: int
    partition: int
    offset: int
    committed_at: datetime


class State(NamedTuple):
    """The state of a key."""

    key: str
    version: int
    state_json: str
    schema_version: int
    final: bool
    updated_at: datetime
    partition: int


class Conflict(NamedTuple):
    """Another version is current than was expected; None where the key does not exist."""

    expected: int
    current: State | None


class StoredEvent(NamedTuple):
    """An event of the outbox."""

    event_id: uuid.UUID
    kind: int
    event_type: str
    topic: str
    partition_key: str
    payload_json: str
    headers: Mapping[str, str]


class KnownAction(NamedTuple):
    """An action's first result."""

    action_id: uuid.UUID
    committed: Committed
    events: Sequence[StoredEvent]


class Duplicate(NamedTuple):
    """Each known one of a commit's actions, in its order."""

    known: Sequence[KnownAction]


class Fenced(NamedTuple):
    """The guard that does not hold."""

    lease: str
    current_epoch: int


class NotApplied(NamedTuple):
    """Nothing is wrong with the commit, but another of its atomic batch was not committed."""


Outcome: TypeAlias = Committed | Conflict | Duplicate | Fenced


class Append(Boundary):
    """Events without a state."""

    request_id: RequestId
    events: Annotated[tuple[Event, ...], Field(max_length=500), AfterValidator(_not_empty)]


class Appended(NamedTuple):
    """Where an appended event stands."""

    event_id: uuid.UUID
    partition: int
    offset: int


class Acknowledgement(Boundary):
    """What a consumer of the outbox has dealt with: everything in the partition up to and with the offset."""

    consumer: Name
    partition: PartitionNumber
    offset: Annotated[int, Field(ge=0)]
    guard: Guard | None


class ConsumerKey(Boundary):
    """What names a consumer of the outbox."""

    consumer: Name


class ConsumerPartition(NamedTuple):
    """How far a consumer is in a partition."""

    partition: int
    next_offset: int
    """The first that it has not acknowledged."""
    lag: int
    acknowledged_at: datetime | None


class Consumer(NamedTuple):
    """A consumer of the outbox."""

    name: str
    registered_at: datetime
    partitions: Sequence[ConsumerPartition]


class StateKey(Boundary):
    """What names a state."""

    key: Key


class PastState(Boundary):
    """What names the state that a key had at a version."""

    key: Key
    at_version: Annotated[int, Field(ge=0)]


class LoggedAction(NamedTuple):
    """One action of the log. Of a commit's actions the first has its state and schema_version; None where they are not there.

    What is text here is read when it is shown: thousands of rows wait in memory, and most watchers ask for less.
    """

    partition: int
    offset: int
    action_index: int
    action_id: uuid.UUID
    type: str
    provenance_text: str
    events_text: str | None
    key: str | None
    """None of appended events."""
    version: int
    state_json: str | None
    schema_version: int | None
    final: bool | None
    committed_at: datetime

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory."""
        return 500 + len(self.state_json or "") + len(self.events_text or "")


class OpenKey(NamedTuple):
    """A key without a final commit."""

    key: str
    version: int
    partition: int
    updated_at: datetime


class OpenKeysQuery(Boundary):
    """Which open keys to list; no partitions means all."""

    collection: Collection
    partitions: Annotated[tuple[PartitionNumber, ...], Field(max_length=1024)]


class Lease(NamedTuple):
    """A lease as it is now."""

    name: str
    owner: str
    epoch: int
    expires_at: datetime


class LeaseEvent(NamedTuple):
    """What happened to a lease."""

    offset: int
    kind: str
    """acquired, released or expired."""
    name: str
    owner: str
    epoch: int
    occurred_at: datetime

    @property
    def partition(self) -> int:
        """The events are one sequence."""
        return 0

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory."""
        return 500


class LeaseRequest(Boundary):
    """Asks for a lease."""

    name: LeaseName
    owner: Owner
    ttl: Ttl


class LeaseEpoch(Boundary):
    """A lease and the epoch with which it is held."""

    name: LeaseName
    epoch: Epoch


class Renewal(Boundary):
    """Leases of one owner that are to be renewed."""

    owner: Owner
    leases: Annotated[tuple[LeaseEpoch, ...], Field(max_length=500), AfterValidator(_not_empty)]
    ttl: Ttl


class LeaseRelease(Boundary):
    """A lease that its owner ends."""

    name: LeaseName
    owner: Owner
    epoch: Epoch


class LeaseQuery(Boundary):
    """Which leases to list."""

    prefix: LeasePrefix


class BlobKey(Boundary):
    """What names a blob."""

    digest: Digest


def refuse_repeated_actions(items: Sequence[Commit | BridgeError]) -> list[Commit | BridgeError]:
    """The items of an atomic batch, with a refusal in place of each commit that repeats an action of an earlier one."""
    seen: set[uuid.UUID] = set()
    checked: list[Commit | BridgeError] = []
    for item in items:
        actions = {action.action_id for action in item.actions} if isinstance(item, Commit) else set()
        if repeated := actions & seen:
            ids = ", ".join(sorted(map(str, repeated)))
            checked.append(invalid_field("actions", "must not repeat an action of an earlier item", action_id=ids))
        else:
            checked.append(item)
        seen |= actions
    return checked


def check_blobs(blobs: Sequence[Blob]) -> None:
    """Raises BlobDigestMismatch for bytes that are not what they are said to be."""
    for index, blob in enumerate(blobs):
        check_digest(f"blobs[{index}].digest", blob.digest, blake3(blob.content).hexdigest())


def check_digest(field: str, said: str, actual: str) -> None:
    """Raises BlobDigestMismatch, naming `field`, where the two differ."""
    if said != actual:
        raise BlobDigestMismatch(
            f"{field}: the bytes have the digest {actual}",
            metadata={"field": field, "digest": said, "actual_digest": actual},
            violations=[FieldViolation(field, "must be BLAKE3 of the bytes")],
        )
