"""What an action is, what a fold returns, and this node's refusals. Pure: an action brings its own time and ids.

How a contract's state machine folds is fsm.py's.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

from blake3 import blake3
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, PlainValidator, StringConstraints
from pydantic_core import from_json, to_json

from omninode.bridge.errors.v1 import errors_pb2
from services.chassis.boundary import WITHOUT_NUL, Boundary, Digest, Key, LeaseName, Name
from services.chassis.errors import FailedPrecondition, FieldViolation, InvalidArgument, invalid_field

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
State: TypeAlias = Mapping[str, Json]
"""A key's state. It may be shared with a cache: nobody changes it in place."""

_KIB = 1024
_MIB = 1024 * _KIB
PAYLOAD_BYTES = 256 * _KIB
"""The payload of an action, and of an event: the store's bound."""
STATE_BYTES = _MIB
"""A state as text: the store's bound."""
BLOB_COUNT = 16
"""Blobs of a commit: the store's bound."""
BLOB_REF_COUNT = 100
"""References to blobs of a commit: the store's bound."""
_BLOBS_BYTES = 12 * _MIB
"""Blobs of an action in all, so that the commit with its state and events stays below the 16 MiB of a message."""
_HOLDERS = (dict, list)
"""Values of JSON that hold others."""
_MAX_DEPTH = 64
"""Levels of a payload: a state holds payloads a few levels deeper, and must stay readable for every JSON parser."""


class UnknownReducer(InvalidArgument):
    """The node has no reducer of this name."""

    reason = errors_pb2.ERROR_REASON_UNKNOWN_REDUCER


class UnknownVersion(FailedPrecondition):
    """The key's state was made by a version of the reducer that the node does not have."""

    reason = errors_pb2.ERROR_REASON_UNKNOWN_REDUCER


class IllegalTransition(FailedPrecondition):
    """The key's state has no transition for the action."""

    reason = errors_pb2.ERROR_REASON_ILLEGAL_TRANSITION


class Limits(BaseModel):
    """What one call may hold."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    batch_items: int = Field(500, gt=0)
    """Actions of a batch: what the store takes in one."""
    answer_state_bytes: int = Field(12 * _MIB, ge=_MIB, le=12 * _MIB)
    """States in the answer to a batch, so that it stays below the 16 MiB of a message; further ones are left out."""


class JsonObject(NamedTuple):
    """A JSON object as it was given, and what it says."""

    text: str
    value: dict[str, Any]


def _payload(given: object) -> JsonObject:
    assert isinstance(given, str), "the payload is text in every message"
    text = given or "{}"
    if len(text) * 4 > PAYLOAD_BYTES and len(text.encode()) > PAYLOAD_BYTES:
        raise ValueError(f"must be at most {PAYLOAD_BYTES} bytes")
    try:
        value = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise ValueError(f"must be JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError("must be a JSON object")
    # Walking every payload would cost more than parsing it; few can hold what the walk looks for.
    if "\\u0000" in text or text.count("{") + text.count("[") > _MAX_DEPTH:
        _check(value, 1)
    return JsonObject(text, value)


def _check(value: Json, depth: int) -> None:
    match value:
        case str() if "\0" in value:
            raise ValueError("must not hold U+0000")
        case dict() | list() if depth > _MAX_DEPTH:
            raise ValueError(f"must be at most {_MAX_DEPTH} levels deep")
        case dict():
            for name, item in value.items():
                _check(name, depth)
                _check(item, depth + 1)
        case list():
            for item in value:
                _check(item, depth + 1)


def _together(blobs: tuple[Blob, ...]) -> tuple[Blob, ...]:
    if sum(len(blob.content) for blob in blobs) > _BLOBS_BYTES:
        raise ValueError(f"must be at most {_BLOBS_BYTES} bytes in all")
    return blobs


class Condition(IntEnum):
    """What a guard asks of its lease; the numbers of the contract."""

    HELD = 1
    NOT_HELD = 2


class Guard(Boundary):
    """A lease that a commit depends on."""

    lease: LeaseName
    epoch: Annotated[int, Field(ge=0)]
    condition: Condition


class Blob(Boundary):
    """Bytes by their digest."""

    digest: Digest
    content: Annotated[bytes, Field(max_length=_MIB)]


class Action(Boundary):
    """Something that happened to a key."""

    key: Key
    action_id: uuid.UUID
    reducer: Name
    type: Name
    payload_json: Annotated[JsonObject, PlainValidator(_payload)]
    occur_time: AwareDatetime
    """The only time that a fold sees."""
    correlation_id: Annotated[str, StringConstraints(max_length=128, pattern=WITHOUT_NUL)]
    guards: Annotated[tuple[Guard, ...], Field(max_length=16)]
    blobs: Annotated[tuple[Blob, ...], Field(max_length=BLOB_COUNT), AfterValidator(_together)]
    blob_refs: Annotated[tuple[Digest, ...], Field(max_length=BLOB_REF_COUNT)]
    effect_id: Annotated[str, StringConstraints(max_length=512, pattern=WITHOUT_NUL)]
    actor: Annotated[str, StringConstraints(max_length=255, pattern=WITHOUT_NUL)]

    @property
    def size(self) -> int:
        """Bytes of payload and blobs: what it takes in memory and in a message."""
        size = len(self.payload_json.text)
        for blob in self.blobs:
            size += len(blob.content)
        return size

    def fingerprint(self) -> bytes:
        """BLAKE3 of key, reducer, type and payload: the same action_id with another fingerprint is another action."""
        # No part but the payload, which comes last, can hold NUL: no two actions run together to the same bytes.
        return blake3(f"{self.key}\0{self.reducer}\0{self.type}\0{self.payload_json.text}".encode()).digest()


class EventKind(IntEnum):
    """What an event is for; the numbers of the contract."""

    EVENT = 1
    INTENT = 2


class Event(NamedTuple):
    """What a fold wants known or done."""

    kind: EventKind
    event_type: str
    topic: str
    payload_json: str


class Projection(NamedTuple):
    """What the projection of a key is to show."""

    tag: str
    namespace: str
    indices: Mapping[str, str]


@dataclass(slots=True)
class Fold:
    """What an action makes of a state."""

    state: State
    events: tuple[Event, ...]
    projection: Projection
    final: bool
    """Whether the key has ended."""
    _text: str | None = None

    @property
    def state_json(self) -> str:
        """The state as canonical text. Raises InvalidArgument where it is too large."""
        # Made when it is asked for: of actions that are folded together only the last one's state is committed.
        if self._text is None:
            self._text = canonical(self.state, STATE_BYTES, "a state")
        return self._text


class Current(NamedTuple):
    """A key as it stands."""

    version: int
    """0 where it does not exist."""
    state: State | None
    size: int
    """Of the state as text, in characters."""
    schema_version: int
    """The version of the reducer that made the state; 0 where none did."""
    streak: int = 0
    """Commits in a row of this process that led to it, since it last asked whose turn the key is."""


ABSENT = Current(0, None, 0, 0)


@runtime_checkable
class Reducer(Protocol):
    """A pure function registered by name and version.

    The same inputs give the same bytes, on every machine and in every process; what a version made of its inputs it makes for
    ever, for its states are stored. It may import this module, which is all of the node that it needs.
    """

    @property
    def name(self) -> str:
        """What actions call it by: 1 to 255 of `A-Za-z0-9_.-`."""

    @property
    def version(self) -> int:
        """From 1; the state that it makes bears it as the store's schema_version."""

    def opens(self, action_type: str) -> bool:
        """Whether an action of this type makes a key that does not exist yet."""

    def fold(self, state: State | None, action: Action) -> Fold:
        """What `action` makes of `state`, None where the key does not exist. Raises IllegalTransition, InvalidArgument."""


class Reducers:
    """The reducers of a node, no two of the same name and version.

    The newest of a name opens keys. A key goes on with the version that made its state, so that a new version may be brought in
    while keys of the one before are under way.
    """

    def __init__(self, reducers: Iterable[Reducer]) -> None:
        self._by_name: dict[str, dict[int, Reducer]] = {}
        for reducer in sorted(reducers, key=lambda reducer: reducer.version):
            self._by_name.setdefault(reducer.name, {})[reducer.version] = reducer
        self._newest = {name: versions[max(versions)] for name, versions in self._by_name.items()}

    def __iter__(self) -> Iterator[Reducer]:
        """Every version of every reducer."""
        return (reducer for versions in self._by_name.values() for reducer in versions.values())

    def get(self, name: str) -> Reducer:
        """The newest reducer of this name. Raises UnknownReducer."""
        reducer = self._newest.get(name)
        if reducer is None:
            known = ",".join(sorted(self._newest))
            raise UnknownReducer(
                f"reducer: there is no {name}; known are {known}",
                metadata={"field": "reducer", "reducer": name, "known": known},
                violations=[FieldViolation("reducer", "must be the name of a reducer")],
            )
        return reducer

    def of(self, name: str, current: Current) -> Reducer:
        """The reducer of this name that folds on `current`: of its version, or the newest where no reducer made it.

        Raises UnknownReducer, UnknownVersion.
        """
        newest = self.get(name)
        wanted = current.schema_version
        if wanted in (newest.version, 0):
            return newest
        versions = self._by_name[name]
        if wanted not in versions:
            known = ",".join(map(str, versions))
            raise UnknownVersion(
                f"{name}: the key's state is of version {wanted}; known are {known}",
                metadata={"reducer": name, "version": str(wanted), "known": known},
            )
        return versions[wanted]


def canonical(value: Json | State, limit: int, what: str) -> str:
    """JSON text that is the same for equal values.

    Raises InvalidArgument where `what` would be more than `limit` bytes, or would hold a number like 1e999, which JSON has and a
    double has not.
    """
    # pydantic's own, though it does not sort: the standard library's takes twice as long, a dozen times a workflow.
    text = to_json(_sorted(value)).decode()
    if "Infinity" in text and not _is_finite(value):
        raise invalid_field("payload_json", "must not hold a number beyond the range of a double")
    if len(text) * 4 > limit and len(text.encode()) > limit:
        raise invalid_field("payload_json", f"makes {what} of more than {limit} bytes")
    return text


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _sorted(held) if isinstance(held := value[name], _HOLDERS) else held for name in sorted(value)}
    if isinstance(value, list):
        return [_sorted(held) if isinstance(held, _HOLDERS) else held for held in value]
    return value


def _is_finite(value: Json | State) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


def decorrelated_jitter(previous: float, low: float, high: float, draw: float) -> float:
    """How long to wait after having waited `previous`: between `low` and three times that, at most `high`; `draw` is in [0, 1)."""
    return min(high, low + (max(low, 3 * previous) - low) * draw)
