"""Loads a node's ONEX contract: `contract.yaml`, with its subcontracts put where `$ref` names them.

What a section means is its reader's: `settings` is settings.py's, each subcontract its node's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.chassis.yaml_document import MAX_DEPTH, DocumentError, Value, read

Location: TypeAlias = tuple[str | int, ...]
"""Where a value stands in the resolved document: the keys and indexes that lead to it."""

MAX_BYTES = 1024 * 1024
"""Of a contract's files together, each counted as often as it is named, so that references to references cannot grow
without end; a large contract has some tens of KiB."""
MAX_CHAIN = 16
"""Files of which each names the next."""
_REF = "$ref"


class ContractError(Exception):
    """A contract that cannot be used; the message begins with the file and the line, from 1."""

    def __init__(self, place: Place, reason: str) -> None:
        super().__init__(f"{place}: {reason}")
        self.place = place
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Place:
    """A line of a file."""

    file: Path
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class NodeType(StrEnum):
    """The four kinds of ONEX nodes."""

    EFFECT = "EFFECT"
    COMPUTE = "COMPUTE"
    REDUCER = "REDUCER"
    ORCHESTRATOR = "ORCHESTRATOR"


class SubcontractKind(StrEnum):
    """What a subcontract describes; its key in the contract."""

    FSM = "fsm"
    AGGREGATION = "aggregation"
    STATE_MANAGEMENT = "state_management"
    WORKFLOW_COORDINATION = "workflow_coordination"
    ROUTING = "routing"
    EVENT_TYPE = "event_type"
    CACHING = "caching"
    CONFIGURATION = "configuration"


class ContractVersion(BaseModel):
    """The version of a contract, as semantic versioning has it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    major: int = Field(ge=0)
    minor: int = Field(ge=0)
    patch: int = Field(ge=0)

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


class _Head(BaseModel):
    """The keys of a contract beside its subcontracts."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$", max_length=64)
    node_type: NodeType = Field(strict=False)
    contract_version: ContractVersion
    description: str = Field(min_length=1)
    settings: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Contract:
    """A contract with every reference resolved. Its mappings are the caller's to read, not to change."""

    path: Path
    name: str
    node_type: NodeType
    contract_version: ContractVersion
    description: str
    settings: Mapping[str, Any]
    """Section to field to value; checked by the node's settings class. Empty where the contract has none."""
    subcontracts: Mapping[SubcontractKind, Mapping[str, Any]]
    """Those that the contract has."""
    document: Mapping[str, Any]
    """All of it, as JSON has it."""
    places: Mapping[Location, Place]
    """Where each value of the document was written."""

    def place(self, *location: str | int) -> Place:
        """Where the value was written, or what should hold it."""
        return _nearest(location, self.places)


def load(path: Path, *, max_bytes: int = MAX_BYTES) -> Contract:
    """The contract at `path`.

    `{$ref: ./subcontracts/fsm.yaml}` stands for what that file holds, references of its own included. A reference is a
    relative path from the file that it stands in, and stays in the contract's folder, through symbolic links too.

    Raises ContractError for what cannot be read, resolved or understood.
    """
    resolver = _Resolver(path, max_bytes)
    document = resolver.file(path, Place(path, 1), (), ())
    if not isinstance(document, dict):
        raise ContractError(Place(path, 1), "a contract must be a mapping")
    found = {kind: document[kind] for kind in SubcontractKind if kind in document}
    for kind, subcontract in found.items():
        if not isinstance(subcontract, dict):
            raise ContractError(resolver.places[(kind,)], f"{kind}: must be a mapping")
    try:
        head = _Head.model_validate({key: value for key, value in document.items() if key not in found})
    except ValidationError as error:
        raise _refusal(error, resolver.places) from None
    return Contract(
        path=path,
        name=head.name,
        node_type=head.node_type,
        contract_version=head.contract_version,
        description=head.description,
        settings=head.settings,
        subcontracts=found,
        document=document,
        places=resolver.places,
    )


class _Resolver:
    """Puts the files of one contract together, and keeps where each value was written."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.places: dict[Location, Place] = {}
        self._folder = path.parent.resolve()
        self._bytes_left = max_bytes

    def file(self, path: Path, reference: Place, location: Location, including: tuple[Path, ...]) -> object:
        """What the file holds, for the value at `location`; `including` are the files that led to it."""
        real = self._real(path, reference)
        if real in including:
            cycle = (*including[including.index(real) :], real)
            names = " -> ".join(file.relative_to(self._folder).as_posix() for file in cycle)
            raise ContractError(reference, f"the references are a cycle: {names}")
        if len(including) == MAX_CHAIN:
            raise ContractError(reference, f"more than {MAX_CHAIN} references lead to one another")
        try:
            value = read(self._text(path, reference))
        except DocumentError as error:
            raise ContractError(Place(path, error.line), error.reason) from None
        return self._resolved(value, path, location, (*including, real))

    def _resolved(self, value: Value, file: Path, location: Location, including: tuple[Path, ...]) -> object:
        place = self.places.setdefault(location, Place(file, value.line))
        if len(location) > MAX_DEPTH:
            raise ContractError(place, f"nested more than {MAX_DEPTH} levels deep")
        content = value.content
        if isinstance(content, list):
            return [self._resolved(item, file, (*location, at), including) for at, item in enumerate(content)]
        if not isinstance(content, dict):
            return content
        if _REF in content:
            target = _target(content, place)
            return self.file(file.parent / target, Place(file, content[_REF].line), location, including)
        return {key: self._resolved(item, file, (*location, key), including) for key, item in content.items()}

    def _real(self, path: Path, reference: Place) -> Path:
        try:
            real = path.resolve()
        except (OSError, RuntimeError):
            raise ContractError(reference, f"{path}: a symbolic link that leads nowhere") from None
        if not real.is_relative_to(self._folder):
            raise ContractError(reference, f"{path}: leads out of the contract's folder")
        return real

    def _text(self, path: Path, reference: Place) -> str:
        try:
            if not path.is_file():
                raise ContractError(reference, f"{path}: there is no such file")
            with path.open("rb") as opened:
                data = opened.read(self._bytes_left + 1)
        except OSError as error:
            raise ContractError(reference, f"{path}: {error.strerror}") from error
        self._bytes_left -= len(data)
        if self._bytes_left < 0:
            raise ContractError(reference, f"{path}: makes the contract too large")
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise ContractError(Place(path, data.count(b"\n", 0, error.start) + 1), "is not UTF-8") from None


def _target(content: Mapping[str, Value], place: Place) -> str:
    """The path that a reference names, once it is known to be harmless as text."""
    target = content[_REF].content
    if len(content) > 1:
        raise ContractError(place, f"{_REF} must stand alone, not beside other keys")
    if not isinstance(target, str) or not target or "\0" in target:
        raise ContractError(place, f"{_REF} must be the path of a file")
    if PurePosixPath(target).is_absolute() or PureWindowsPath(target).anchor:
        raise ContractError(place, f"{_REF} must be a relative path: {target}")
    if ".." in PureWindowsPath(target).parts:
        raise ContractError(place, f"{_REF} must have no `..`: {target}")
    return target


def _refusal(error: ValidationError, places: Mapping[Location, Place]) -> ContractError:
    first = error.errors(include_url=False, include_input=False)[0]
    location = first["loc"]
    reason = "is no key of a contract" if first["type"] == "extra_forbidden" else first["msg"]
    return ContractError(_nearest(location, places), f"{'.'.join(map(str, location))}: {reason}")


def _nearest(location: Location, places: Mapping[Location, Place]) -> Place:
    """Where the value was written, or else what should hold it."""
    while location not in places:
        location = location[:-1]
    return places[location]
