"""A reducer of one's own: a counter that asks to be reset when it is full.

Installed beside the node it is found by its entry point, see pyproject.toml. It is pure: what it knows of the world is in the
action, what it wants done it returns as an intent.
"""

from __future__ import annotations

from services.chassis.errors import invalid_field
from services.reducer.domain import (
    PAYLOAD_BYTES,
    Action,
    Event,
    EventKind,
    Fold,
    IllegalTransition,
    Projection,
    State,
    canonical,
)

_LIMIT = 1000


class Counter:
    """Takes `counted` with a payload of `by`, 1 to 1,000 and 1 without it, and `reset`. Its state is `{"count": N}`."""

    name = "counter"
    version = 1

    def opens(self, action_type: str) -> bool:
        """The first count makes the counter."""
        return action_type == "counted"

    def fold(self, state: State | None, action: Action) -> Fold:
        """The count with the action. Raises IllegalTransition, InvalidArgument."""
        before = 0 if state is None else state["count"]
        assert isinstance(before, int), "every state of this version holds a count"
        match action.type:
            case "counted":
                count = before + _increment(action)
            case "reset" if state is not None:
                count = 0
            case _:
                allowed = "counted" if state is None else "counted,reset"
                raise IllegalTransition(
                    f"{action.type}: is not allowed; allowed: {allowed}",
                    metadata={"key": action.key, "state": "", "type": action.type, "allowed": allowed},
                )
        return Fold(
            state={"count": count},
            events=(_reset_wanted(action.key, count),) if before < _LIMIT <= count else (),
            projection=Projection(tag="FULL" if count >= _LIMIT else "COUNTING", namespace="", indices={}),
            final=False,
        )


def _increment(action: Action) -> int:
    by = action.payload_json.value.get("by", 1)
    if type(by) is not int or not 1 <= by <= _LIMIT:
        raise invalid_field("payload_json.by", f"must be an integer from 1 to {_LIMIT}")
    return by


def _reset_wanted(key: str, count: int) -> Event:
    payload = canonical({"key": key, "count": count}, PAYLOAD_BYTES, "an intent reset_counter")
    return Event(EventKind.INTENT, "reset_counter", "counters", payload)
