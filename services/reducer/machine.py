"""A state machine as a reducer: frozen values, and the fold over them. Pure.

How a machine is read from its contract is fsm.py's; what a fold returns and refuses with is domain.py's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Literal, TypeAlias

from services.chassis.errors import invalid_field
from services.reducer.domain import (
    PAYLOAD_BYTES,
    Action,
    Event,
    EventKind,
    Fold,
    IllegalTransition,
    Json,
    Projection,
    State,
    canonical,
)

Path: TypeAlias = tuple[str, ...]
"""Names that lead to a value."""
Scalar: TypeAlias = str | bool | int | float | None
"""A value of JSON that holds no other."""

STATE = "state"
"""The field of a state that says where the machine is; as the beginning of a path, the state after the transition."""
PREVIOUS = "previous"
"""As the beginning of a path, the state before the transition; empty where the key did not exist."""
PAYLOAD = "payload"
"""As the beginning of a path, the action's payload."""
OCCUR_TIME = "occur_time"
"""As a path, the action's time: RFC 3339 in UTC with microseconds."""
_INDEX_BYTES = 255
"""A projection's tag, namespace and index values: the store's bound."""


class _Missing(Enum):
    MISSING = 0


_MISSING = _Missing.MISSING
_Found: TypeAlias = "Json | Literal[_Missing.MISSING]"
_Sources: TypeAlias = Mapping[str, "Json | State"]


def _find(path: Path, value: Any) -> _Found:
    # Asking each value on the way what it is would take twice as long, some twenty times a fold.
    try:
        for name in path:
            value = value[name]
    except (KeyError, TypeError):
        return _MISSING
    found: Json = value
    return found


@dataclass(frozen=True, slots=True)
class Reference:
    """A value of the payload, of a state, or the time: its path begins with which."""

    path: Path

    def value(self, sources: _Sources) -> _Found:
        """What is there."""
        # As `_find` does, without a call: a fold looks up some twenty.
        found: Any = sources
        try:
            for name in self.path:
                found = found[name]
        except (KeyError, TypeError):
            return _MISSING
        value: Json = found
        return value


@dataclass(frozen=True, slots=True)
class Constant:
    """A value of the contract's own."""

    constant: Json

    def value(self, sources: _Sources) -> _Found:
        """Itself."""
        return self.constant


@dataclass(frozen=True, slots=True)
class Object:
    """Fields by name; one whose source is not there is left out."""

    fields: tuple[tuple[str, Template], ...]

    def value(self, sources: _Sources) -> dict[str, Json]:
        """The object of what is there."""
        found: dict[str, Json] = {}
        for name, template in self.fields:
            value = template.value(sources)
            if value is not _MISSING:
                found[name] = value
        return found


Template: TypeAlias = Reference | Constant | Object


@dataclass(frozen=True, slots=True)
class Append:
    """An item for a list. One of the list whose field `unique` has the same value is replaced in its place."""

    path: Path
    item: Object
    unique: str | None

    def onto(self, held: _Found, sources: _Sources) -> list[Json]:
        """The list with the item; `held` stays as it is."""
        item = self.item.value(sources)
        items = held if isinstance(held, list) else []
        if self.unique is not None:
            for at, other in enumerate(items):
                if isinstance(other, dict) and other.get(self.unique) == item.get(self.unique):
                    return [*items[:at], item, *items[at + 1 :]]
        return [*items, item]


@dataclass(frozen=True, slots=True)
class Emission:
    """An event or an intent that a fold returns."""

    kind: EventKind
    event_type: str
    topic: str
    payload: Object

    def event(self, sources: _Sources) -> Event:
        """The event. Raises InvalidArgument where it would be too large."""
        text = canonical(self.payload.value(sources), PAYLOAD_BYTES, f"an event {self.event_type}")
        return Event(self.kind, self.event_type, self.topic, text)


@dataclass(frozen=True, slots=True)
class Transition:
    """What an action of a type does in some states."""

    type: str
    to: str
    payload: tuple[tuple[Path, str], ...]
    """The fields that must be there, and their types."""
    guards: tuple[tuple[Path, tuple[Scalar, ...]], ...]
    """Fields of the payload, and the values of which each must have one."""
    assign: tuple[tuple[Path, Template], ...]
    append: tuple[Append, ...]
    emit: tuple[Emission, ...]

    def applies(self, payload: Json) -> bool:
        """Whether the payload meets the guards."""
        for path, allowed in self.guards:  # noqa: SIM110 (a generator would cost as much as the look-ups)
            if not _is_among(_find(path, payload), allowed):
                return False
        return True

    def shadows(self, later: Transition) -> bool:
        """Whether this one takes every action that `later` would take."""
        theirs = dict(later.guards)
        return all(
            path in theirs and all(_is_among(value, allowed) for value in theirs[path]) for path, allowed in self.guards
        )


@dataclass(frozen=True, slots=True)
class Stage:
    """A state of the machine."""

    final: bool
    """Whether it ends the key."""
    entry: tuple[Emission, ...]
    """What is emitted where the machine comes here from another state."""
    exit: tuple[Emission, ...]
    """What is emitted where it goes from here to another state."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A state machine as a reducer. The same inputs give the same bytes, on every machine and in every process."""

    name: str
    """What actions call it by."""
    version: int
    """The version of its states' form."""
    states: Mapping[str, Stage]
    transitions: Mapping[str | None, Mapping[str, tuple[Transition, ...]]]
    """State, None where the key does not exist, to action type to what may happen."""
    tag: Path
    """In the state, as are the next two: what the projection shows."""
    namespace: Path
    indices: tuple[tuple[str, Path], ...]

    def opens(self, action_type: str) -> bool:
        """Whether an action of this type makes a key that does not exist yet."""
        return action_type in self.transitions[None]

    def fold(self, state: State | None, action: Action) -> Fold:
        """What `action` makes of `state`, None where the key does not exist.

        Raises IllegalTransition where the state has no transition for the action's type, and InvalidArgument where the payload
        is none that the transition takes, or makes an event that is too large.
        """
        current = None if state is None else _name_of(state)
        payload = action.payload_json.value
        transition = self._transition(current, action)
        for path, kind in transition.payload:
            _check_type(_find(path, payload), kind, path)
        sources: dict[str, Json | State] = {PAYLOAD: payload, OCCUR_TIME: _rfc3339(action.occur_time)}
        after: dict[str, Json] = {**(state or {}), STATE: transition.to}
        for path, template in transition.assign:
            value = template.value(sources)
            if value is not _MISSING:
                _set(after, path, value)
        for append in transition.append:
            _set(after, append.path, append.onto(_find(append.path, after), sources))
        sources[STATE], sources[PREVIOUS] = after, state or {}
        entered = self.states[transition.to]
        emissions = transition.emit
        if current != transition.to:
            left = self.states[current].exit if current is not None else ()
            emissions = (*left, *emissions, *entered.entry)
        return Fold(
            state=after,
            events=tuple([emission.event(sources) for emission in emissions]),
            projection=self._project(after),
            final=entered.final,
        )

    def _transition(self, current: str | None, action: Action) -> Transition:
        by_type = self.transitions.get(current, {})
        candidates = by_type.get(action.type)
        if candidates is None:
            raise _illegal(current, action, by_type)
        for transition in candidates:
            if transition.applies(action.payload_json.value):
                return transition
        path = candidates[0].guards[0][0]
        allowed = [_shown(value) for transition in candidates for value in dict(transition.guards).get(path, ())]
        raise invalid_field(_field(path), f"must be one of {', '.join(allowed)}")

    def _project(self, state: State) -> Projection:
        indices = {}
        for name, path in self.indices:
            text = _short_text(path, state)
            if text is not None:
                indices[name] = text
        return Projection(_short_text(self.tag, state) or "", _short_text(self.namespace, state) or "", indices)


def _is_among(found: _Found, allowed: tuple[Scalar, ...]) -> bool:
    if isinstance(found, str) or found not in allowed:
        return found in allowed
    # True equals 1 to Python and not to JSON.
    is_bool = isinstance(found, bool)
    return any(found == value and isinstance(value, bool) == is_bool for value in allowed)


def _shown(value: Scalar) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _name_of(state: State) -> str:
    """Where the machine is; empty, which no state is called, in a state that no machine made."""
    name = state.get(STATE)
    return name if isinstance(name, str) else ""


def _illegal(current: str | None, action: Action, by_type: Iterable[str]) -> IllegalTransition:
    allowed = ",".join(by_type)
    match current:
        case None:
            where = "for a key that does not exist"
        case "":
            where = "in a state that this reducer did not make"
        case name:
            where = f"in the state {name}"
    return IllegalTransition(
        f"{action.type}: is not allowed {where}; allowed: {allowed or 'nothing'}",
        metadata={"key": action.key, "state": current or "", "type": action.type, "allowed": allowed},
    )


_TYPES: Mapping[str, frozenset[type]] = {
    "string": frozenset({str}),
    "integer": frozenset({int}),
    "number": frozenset({int, float}),
    "boolean": frozenset({bool}),
    "object": frozenset({dict}),
    "array": frozenset({list}),
}


def has_type(value: object, kind: str) -> bool:
    """Whether a value is of a type, as JSON has types."""
    # Its very type: a bool is an int to Python and no number to JSON.
    return type(value) in _TYPES[kind]


def _check_type(found: _Found, kind: str, path: Path) -> None:
    if not has_type(found, kind):
        raise invalid_field(_field(path), "must be set" if found is _MISSING else f"must be of type {kind}")


def _field(path: Path) -> str:
    return ".".join(("payload_json", *path))


def _rfc3339(time: datetime) -> str:
    in_utc = time if time.tzinfo is UTC else time.astimezone(UTC)
    return in_utc.isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def _set(target: dict[str, Json], path: Path, value: Json) -> None:
    """Sets a field below `target`, which is the caller's own; the objects on the way are copied, for they may be shared."""
    for name in path[:-1]:
        held = target.get(name)
        copy = dict(held) if isinstance(held, dict) else {}
        target[name] = copy
        target = copy
    target[path[-1]] = value


def _short_text(path: Path, state: State) -> str | None:
    """Text that a projection can bear; None for what is none or too long to be looked up by."""
    found = _find(path, state)
    if not isinstance(found, str) or (len(found) * 4 > _INDEX_BYTES and len(found.encode()) > _INDEX_BYTES):
        return None
    return found
