"""What a call carries on through every hop: its correlation id and its deadline."""

from __future__ import annotations

from contextvars import ContextVar

CORRELATION_METADATA = "x-correlation-id"
"""The metadata key that carries the correlation id."""

correlation_id: ContextVar[str] = ContextVar("correlation_id", default="")
"""The correlation id of the call that this task serves; empty outside a call."""

deadline: ContextVar[float | None] = ContextVar("deadline", default=None)
"""When the work of the call that this task serves must be done, in the event loop's time; None where nobody waits."""
