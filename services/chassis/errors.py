"""The eight kinds of refusal, named after gRPC's canonical codes, and what each carries over the wire.

A node's `domain.py` has the leaves: a class with a `reason` and a docstring that is its default message. How a refusal becomes a
google.rpc.Status, and a status a refusal again, is the interceptors' work; nothing here knows a transport beyond the code's number.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from pydantic import ValidationError

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.errors.v1.errors_pb2 import ErrorReason

DOMAIN = "bridge.omninode"
Reason: TypeAlias = ErrorReason.ValueType
_PREFIX = "ERROR_REASON_"

# A client drops trailers over 8 KiB, and the reason with them. All that a refusal says stays below that together: the message
# goes out twice, once with three bytes for one, and the details with four for three.
_MESSAGE_BYTES = 768
_VIOLATIONS_BYTES = 1024
_TEXT_BYTES = 256
"""Of one value of the metadata, one field's path or one description."""


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field at fault: its path as protobuf names it, and what it must be."""

    field: str
    description: str


class BridgeError(Exception):
    """The call was refused. Long texts end in an ellipsis, and of many violations the first are kept: all fits gRPC's trailers."""

    code: ClassVar[int]
    """The canonical code's number, as google.rpc.Code has it."""
    reason: Reason = errors_pb2.ERROR_REASON_UNSPECIFIED
    retry_delay: float | None = None
    """Seconds after which trying again may help; None where it does not."""
    client_may_retry: bool = True
    """False sends the pushback that keeps a client's service config from retrying by itself."""

    def __init__(
        self,
        message: str | None = None,
        *,
        metadata: Mapping[str, str] | None = None,
        violations: Iterable[FieldViolation] = (),
        reason: Reason | None = None,
        retry_delay: float | None = None,
    ) -> None:
        said = message or inspect.cleandoc(type(self).__doc__ or "").split("\n\n")[0].replace("\n", " ")
        self.message = _clipped(said, _MESSAGE_BYTES)
        self.metadata = {key: _clipped(value, _TEXT_BYTES) for key, value in (metadata or {}).items()}
        self.violations = _first(violations)
        if reason is not None:
            self.reason = reason
        if retry_delay is not None:
            self.retry_delay = retry_delay
        super().__init__(self.message)

    @property
    def reason_name(self) -> str:
        """The reason as it stands in ErrorInfo: the enum's name without its prefix."""
        return ErrorReason.Name(self.reason).removeprefix(_PREFIX)


class InvalidArgument(BridgeError):
    """The request is malformed, whatever the state of the system."""

    code = 3
    reason = errors_pb2.ERROR_REASON_INVALID_FIELD


class DeadlineExceeded(BridgeError):
    """The work did not finish in its time; a write may have taken effect."""

    code = 4


class NotFound(BridgeError):
    """What the request names is not there."""

    code = 5


class AlreadyExists(BridgeError):
    """What the request would make is there already, and differs."""

    code = 6


class ResourceExhausted(BridgeError):
    """A bound of this node is reached; later it may not be."""

    code = 8
    retry_delay = 1.0


class FailedPrecondition(BridgeError):
    """The system is not in the state that the request needs; trying again unchanged will not help."""

    code = 9


class Aborted(BridgeError):
    """Another writer came first; the whole step may be tried again."""

    code = 10


class Unavailable(BridgeError):
    """The node, or something that it needs, cannot be reached now."""

    code = 14
    retry_delay = 1.0


KINDS: Mapping[int, type[BridgeError]] = {kind.code: kind for kind in BridgeError.__subclasses__()}
"""Canonical code -> kind; what a client raises again."""


def reason_of(name: str) -> Reason:
    """The enum value of an ErrorInfo's reason; UNSPECIFIED for one that this build does not know."""
    try:
        return ErrorReason.Value(_PREFIX + name)
    except ValueError:
        return errors_pb2.ERROR_REASON_UNSPECIFIED


def invalid_field(field: str, description: str, *, reason: Reason | None = None, **metadata: str) -> InvalidArgument:
    """An INVALID_ARGUMENT about one field, named in the message, the metadata and the violation."""
    return InvalidArgument(
        f"{field}: {description}",
        metadata={"field": field, **metadata},
        violations=[FieldViolation(field, description)],
        reason=reason,
    )


def from_validation(error: ValidationError, prefix: str = "") -> InvalidArgument:
    """An INVALID_ARGUMENT with a violation for each error that pydantic found, below the field path `prefix`."""
    violations = [
        FieldViolation(_path(prefix, item["loc"]), _description(item["msg"]))
        for item in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    kept = _first(violations)
    said = "; ".join(f"{violation.field}: {violation.description}" for violation in kept)
    return InvalidArgument(
        said if len(kept) == len(violations) else f"{len(violations)} fields are at fault, the first: {said}",
        metadata={"field": kept[0].field},
        violations=kept,
    )


def _path(prefix: str, loc: tuple[int | str, ...]) -> str:
    path = prefix
    for part in loc:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path or "request"


def _description(message: str) -> str:
    return message.removeprefix("Value error, ")


def _clipped(text: str, limit: int) -> str:
    encoded = text.encode("utf-8", "replace")
    return encoded.decode() if len(encoded) <= limit else encoded[: limit - 3].decode("utf-8", "ignore") + "…"


def _first(violations: Iterable[FieldViolation]) -> tuple[FieldViolation, ...]:
    """As many as fit; one at least."""
    kept: list[FieldViolation] = []
    room = _VIOLATIONS_BYTES
    for violation in violations:
        clipped = FieldViolation(_clipped(violation.field, _TEXT_BYTES), _clipped(violation.description, _TEXT_BYTES))
        room -= len(clipped.field.encode()) + len(clipped.description.encode())
        if kept and room < 0:
            break
        kept.append(clipped)
    return tuple(kept)


def to_message(error: BridgeError, prefix: str = "") -> errors_pb2.Error:
    """The error as an item of a batch carries it; `prefix` is the item's own path, put before each field's."""
    dot = f"{prefix}." if prefix else ""
    return errors_pb2.Error(
        code=error.code,
        reason=error.reason,
        message=error.message,
        metadata=error.metadata,
        field_violations=[
            errors_pb2.FieldViolation(field=dot + violation.field, description=violation.description)
            for violation in error.violations
        ],
    )


def from_message(error: errors_pb2.Error) -> BridgeError:
    """What an item of a batch was refused with, as the call for that item alone would have raised it."""
    kind = KINDS.get(error.code, BridgeError)
    violations = [FieldViolation(violation.field, violation.description) for violation in error.field_violations]
    return kind(error.message or None, metadata=dict(error.metadata), reason=error.reason, violations=violations)
