"""Reads a state machine from a contract's FSM and state_management subcontracts, and refuses what is none. Pure.

The subcontracts' text, its lines and its references are the chassis'; what the machine does is machine.py's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from services.chassis.boundary import Name
from services.reducer.domain import EventKind
from services.reducer.machine import (
    OCCUR_TIME,
    PAYLOAD,
    PREVIOUS,
    STATE,
    Append,
    Constant,
    Emission,
    Machine,
    Object,
    Path,
    Reference,
    Stage,
    Template,
    Transition,
    has_type,
)

Location: TypeAlias = tuple[str | int, ...]


class MachineError(ValueError):
    """A subcontract that is no machine: where in the contract, beginning with the subcontract's kind, and why."""

    def __init__(self, location: Location, reason: str) -> None:
        super().__init__(f"{'.'.join(map(str, location))}: {reason}")
        self.location = location
        self.reason = reason


_Scalar: TypeAlias = str | bool | int | Annotated[float, Field(allow_inf_nan=False)] | None
_Dotted: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$")]


_P = TypeVar("_P", bound="_Part")


class _Part(BaseModel):
    """A part of a subcontract."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class _EmissionPart(_Part):
    kind: Literal["EVENT", "INTENT"]
    event_type: Name
    topic: Name
    payload: dict[str, Any]
    """Names to constants, to objects of the same form, or to `$payload.<path>`, `$state.<path>` (the state afterwards),
    `$previous.<path>` (the state before) and `$occur_time`. A field whose source is not there is left out."""


class _StatePart(_Part):
    name: Name
    final: bool = False
    """Ends the key; nothing leads on from here."""
    entry: list[_EmissionPart] = []
    """What is emitted after a transition's own, where it comes here from another state."""
    exit: list[_EmissionPart] = []
    """What is emitted before a transition's own, where it leads from here to another state."""


class _AppendPart(_Part):
    to: _Dotted
    """The list's path in the state; it is made where it is not there."""
    item: dict[str, Any]
    """As a payload of `emit`, of `$payload` and `$occur_time`."""
    unique: str | None = None
    """A field of the items: one that has the same value is replaced in its place."""


class _TransitionPart(_Part):
    type: Name
    """The type of the action that makes it."""
    sources: list[str] | None = Field(None, alias="from", min_length=1)
    """The states from which it leads; left out, it makes a key that does not exist yet."""
    to: str
    payload: dict[_Dotted, Literal["string", "integer", "number", "boolean", "object", "array"]] = {}
    """Path to type of the fields that the payload must have; it may have more."""
    when: dict[_Dotted, Annotated[list[_Scalar], Field(min_length=1)]] = {}
    """Path to texts, numbers, booleans or nulls: each field must have one of its values, or the next transition of the type is
    looked at. Values are compared as JSON's: 1 is 1.0, and not true."""
    assign: dict[_Dotted, Any] = {}
    """Path in the state to a constant, `$payload.<path>` or `$occur_time`."""
    append: list[_AppendPart] = []
    emit: list[_EmissionPart] = []


class _FsmPart(_Part):
    name: Name
    """What actions call the reducer by."""
    states: list[_StatePart]
    transitions: list[_TransitionPart]
    """Looked at in this order."""


class _ProjectionPart(_Part):
    tag: _Dotted
    namespace: _Dotted
    indices: Annotated[
        dict[Annotated[str, StringConstraints(min_length=1, max_length=255)], _Dotted], Field(max_length=16)
    ]


class _StateManagementPart(_Part):
    schema_version: int = Field(gt=0)
    """The version of the state's form, and so of the reducer: keys that an older one made go on with that."""
    projection: _ProjectionPart
    """Paths in the state of what the projection is to show; what is no text of at most 255 bytes is left out."""
    sessions: dict[str, Any] = {}
    """How aggregation's sessions are kept: aggregation/contract.py reads it."""


_FSM = "fsm"
_STATE_MANAGEMENT = "state_management"


def read(fsm: Mapping[str, Any], state_management: Mapping[str, Any]) -> Machine:
    """The machine of the two subcontracts. Raises MachineError."""
    machine = _parsed(_FsmPart, fsm, _FSM)
    management = _parsed(_StateManagementPart, state_management, _STATE_MANAGEMENT)
    return _Reader(machine, management).machine()


def _parsed(part: type[_P], document: Mapping[str, Any], kind: str) -> _P:
    try:
        return part.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise MachineError((kind, *first["loc"]), first["msg"]) from None


class _Reader:
    """Checks what the parts say of one another, and makes the machine of them."""

    def __init__(self, fsm: _FsmPart, management: _StateManagementPart) -> None:
        self._fsm = fsm
        self._management = management
        self._fields = {STATE} | {
            path.split(".")[0]
            for transition in fsm.transitions
            for path in (*transition.assign, *(append.to for append in transition.append))
        }
        """What a state can hold, by its first names."""

    def machine(self) -> Machine:
        states = self._states()
        transitions = self._transitions(states)
        self._check_reach(states, transitions)
        projection = self._management.projection
        return Machine(
            name=self._fsm.name,
            version=self._management.schema_version,
            states=states,
            transitions=transitions,
            tag=self._projected(projection.tag, "tag"),
            namespace=self._projected(projection.namespace, "namespace"),
            indices=tuple((name, self._projected(path, "indices", name)) for name, path in projection.indices.items()),
        )

    def _states(self) -> dict[str, Stage]:
        states: dict[str, Stage] = {}
        for at, part in enumerate(self._fsm.states):
            location = (_FSM, "states", at)
            if part.name in states:
                raise MachineError((*location, "name"), f"there are two states {part.name}")
            if part.final and part.exit:
                raise MachineError((*location, "exit"), f"{part.name} is final: nothing leads on from it")
            states[part.name] = Stage(
                part.final,
                entry=self._emissions(part.entry, (*location, "entry"), {}),
                exit=self._emissions(part.exit, (*location, "exit"), {}),
            )
        return states

    def _transitions(self, states: Mapping[str, Stage]) -> dict[str | None, dict[str, tuple[Transition, ...]]]:
        # Every state has its place, None first, so that looking one up never misses.
        found: dict[str | None, dict[str, tuple[Transition, ...]]] = {None: {}} | {name: {} for name in states}
        for at, part in enumerate(self._fsm.transitions):
            location = (_FSM, "transitions", at)
            if part.to not in states:
                raise MachineError((*location, "to"), f"there is no state {part.to}")
            transition = self._transition(part, location)
            for index, source in enumerate(part.sources or [None]):
                place = (*location, "from", index)
                if source not in found:
                    raise MachineError(place, f"there is no state {source}")
                if source is not None and states[source].final:
                    raise MachineError(place, f"{source} is final: nothing leads on from it")
                earlier = found[source].get(part.type, ())
                if any(other.shadows(transition) for other in earlier):
                    where = source or "a key that does not exist"
                    raise MachineError(location, f"an earlier transition takes every {part.type} from {where}")
                found[source][part.type] = (*earlier, transition)
        return found

    def _transition(self, part: _TransitionPart, location: Location) -> Transition:
        for path, values in part.when.items():
            self._check_payload_path(tuple(path.split(".")), part.payload, (*location, "when", path))
            kind = part.payload.get(path)
            for at, value in enumerate(values):
                if kind is not None and not has_type(value, kind):
                    raise MachineError((*location, "when", path, at), f"no {kind} is ever {value!r}")
        return Transition(
            type=part.type,
            to=part.to,
            payload=tuple((tuple(path.split(".")), kind) for path, kind in part.payload.items()),
            guards=tuple((tuple(path.split(".")), tuple(allowed)) for path, allowed in part.when.items()),
            assign=tuple(self._assignments(part, location)),
            append=tuple(
                Append(
                    path=self._target(append.to, (*location, "append", at, "to")),
                    item=self._object(append.item, (*location, "append", at, "item"), part.payload, _OF_ACTION),
                    unique=append.unique,
                )
                for at, append in enumerate(part.append)
            ),
            emit=self._emissions(part.emit, (*location, "emit"), part.payload),
        )

    def _assignments(self, part: _TransitionPart, location: Location) -> Iterator[tuple[Path, Template]]:
        for path, given in part.assign.items():
            place = (*location, "assign", path)
            yield self._target(path, place), self._template(given, place, part.payload, _OF_ACTION)

    def _emissions(
        self, parts: Sequence[_EmissionPart], location: Location, payload: Mapping[str, str]
    ) -> tuple[Emission, ...]:
        return tuple(
            Emission(
                kind=EventKind[part.kind],
                event_type=part.event_type,
                topic=part.topic,
                payload=self._object(part.payload, (*location, at, "payload"), payload, _OF_FOLD),
            )
            for at, part in enumerate(parts)
        )

    def _target(self, dotted: str, location: Location) -> Path:
        path = tuple(dotted.split("."))
        if path[0] == STATE:
            raise MachineError(location, f"{STATE} is the machine's own field")
        return path

    def _object(
        self, fields: Mapping[str, Any], location: Location, payload: Mapping[str, str], known: frozenset[str]
    ) -> Object:
        return Object(
            tuple((name, self._template(given, (*location, name), payload, known)) for name, given in fields.items())
        )

    def _template(self, given: Any, location: Location, payload: Mapping[str, str], known: frozenset[str]) -> Template:
        if isinstance(given, dict):
            return self._object(given, location, payload, known)
        if not isinstance(given, str) or not given.startswith("$"):
            return Constant(given)
        path = tuple(given[1:].split("."))
        source, inner = path[0], path[1:]
        if source not in known or (source == OCCUR_TIME) == bool(inner):
            references = ", ".join(sorted(f"${name}" if name == OCCUR_TIME else f"${name}.<path>" for name in known))
            raise MachineError(location, f"{given} is none of {references}")
        if source == PAYLOAD:
            self._check_payload_path(inner, payload, location)
        elif source != OCCUR_TIME:
            self._check_state_path(inner, location)
        return Reference(path)

    def _check_payload_path(self, path: Path, payload: Mapping[str, str], location: Location) -> None:
        """A path must be a field that is declared, lie below an object that is, or have such a field below itself."""
        for dotted, kind in payload.items():
            declared = tuple(dotted.split("."))
            if declared[: len(path)] == path or (kind == "object" and path[: len(declared)] == declared):
                return
        raise MachineError(location, f"the payload has no field {'.'.join(path)}")

    def _check_state_path(self, path: Path, location: Location) -> None:
        if path[0] not in self._fields:
            raise MachineError(location, f"no transition sets the field {path[0]} of the state")

    def _projected(self, dotted: str, *location: str) -> Path:
        path = tuple(dotted.split("."))
        self._check_state_path(path, (_STATE_MANAGEMENT, "projection", *location))
        return path

    def _check_reach(
        self,
        states: Mapping[str, Stage],
        transitions: Mapping[str | None, Mapping[str, Sequence[Transition]]],
    ) -> None:
        reached: set[str | None] = set()
        waiting: list[str | None] = [None]
        while waiting:
            name = waiting.pop()
            if name not in reached:
                reached.add(name)
                waiting += [transition.to for choice in transitions[name].values() for transition in choice]
        for at, (name, state) in enumerate(states.items()):
            if name not in reached:
                raise MachineError((_FSM, "states", at, "name"), f"no way leads to the state {name}")
            if not state.final and not transitions[name]:
                raise MachineError((_FSM, "states", at, "name"), f"the state {name} is not final, and nothing leads on")


_OF_ACTION = frozenset({PAYLOAD, OCCUR_TIME})
_OF_FOLD = _OF_ACTION | {STATE, PREVIOUS}
