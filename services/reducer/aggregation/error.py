"""What a session is refused with. Pure."""

from __future__ import annotations

from omninode.bridge.errors.v1 import errors_pb2
from services.chassis.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    FieldViolation,
    NotFound,
    ResourceExhausted,
)


class SessionNotFound(NotFound):
    """There is no session of this name."""

    reason = errors_pb2.ERROR_REASON_SESSION_NOT_FOUND


class SessionTooLarge(ResourceExhausted):
    """The session has more panes at once than the node holds; aggregate by fewer keys, or raise the limit."""

    reason = errors_pb2.ERROR_REASON_SESSION_TOO_LARGE


class TooManySessions(ResourceExhausted):
    """The node serves as many sessions as it may; another replica may have room."""

    reason = errors_pb2.ERROR_REASON_TOO_MANY_SESSIONS


class SessionTakenOver(Aborted):
    """Another stream writes the session now."""

    reason = errors_pb2.ERROR_REASON_SESSION_TAKEN_OVER


class SessionFinished(FailedPrecondition):
    """The session has ended and takes no more items."""

    reason = errors_pb2.ERROR_REASON_SESSION_FINISHED


class SessionConfigDiffers(AlreadyExists):
    """The session is there with another configuration."""

    reason = errors_pb2.ERROR_REASON_SESSION_CONFIG_DIFFERS

    def __init__(self, session: str, field: str) -> None:
        super().__init__(
            f"{field}: the session {session} is there with another",
            metadata={"session": session, "field": field},
            violations=[FieldViolation(field, "must be as the session has it, or left out")],
        )
