"""A node's settings: the environment over its contract over the defaults, each refused at start with its name.

Sections are models of the rooms that use them; nothing here knows a field. The contract's own syntax is contracts.py's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from services.chassis.contracts import Contract

S = TypeVar("S", bound="NodeSettings")
_UNSAID = {"value_error", "assertion_error"}
"""Kinds of pydantic errors whose text is a validator's own, and may quote the value."""


class SettingsError(Exception):
    """Settings with which the node cannot start: one line that names each, and no value."""


@dataclass(frozen=True, slots=True)
class SharedVariable:
    """Marks a field that a variable of this name sets for every node, unless the node's own variable does.

    `url: Annotated[str, SharedVariable("DATABASE_URL")]`
    """

    name: str
    unit: float = 1
    """How much of the field's unit the variable's is: 0.001 for a variable in milliseconds and a field in seconds."""


class NodeSettings(BaseSettings):
    """What a node's settings class derives from: fields that are sections, frozen models that refuse unknown keys.

    Sections take no default; their fields do. Made directly, it holds what it is given and never reads the environment.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of a node, for who reads a table of them."""

    section: str
    field: str
    variable: str
    """The node's own: `OMNIBRIDGE_<NODE>__<SECTION>__<FIELD>`."""
    shared_variable: str | None
    type: str
    default: str | None
    """What holds without the variable, from the contract or the code, as JSON; None where there must be a variable."""
    description: str


def load(cls: type[S], *, node: str, contract: Contract, environ: Mapping[str, str]) -> S:
    """The settings of the node, from `environ` over the contract's `settings` over the fields' defaults.

    A variable's value is text, or JSON where the field holds a list or a mapping; an empty one counts as not set. Raises
    SettingsError for every variable with the node's prefix and every key of the contract's settings that is no setting,
    and for every value that is missing or that its field refuses.
    """
    fields = _fields(cls, node)
    own = {field.variable for field in fields.values()}
    problems = [f"{name}: is no setting" for name in environ if name.startswith(_prefix(node)) and name not in own]
    problems += [
        f"{contract.place('settings', section)}: settings.{section}: must be a mapping"
        for section, values in contract.settings.items()
        if not isinstance(values, dict)
    ]
    given = _given(fields, environ)
    sources = (_Environment(cls, fields, given, environ), InitSettingsSource(cls, dict(contract.settings)))
    try:
        settings = cls(_build_sources=(sources, {}))
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        problems += [_problem(fields, given, contract, detail) for detail in details]
    if problems:
        raise SettingsError("; ".join(problems))
    return settings


def describe(cls: type[NodeSettings], *, node: str, contract: Contract) -> tuple[Setting, ...]:
    """Every setting of the node, in the order in which the class has them."""
    return tuple(
        Setting(
            section=section,
            field=name,
            variable=field.variable,
            shared_variable=field.shared_variable,
            type=_type_name(field.info.annotation),
            default=_default(field, contract, section, name),
            description=" ".join((field.info.description or "").split()),
        )
        for (section, name), field in _fields(cls, node).items()
    )


@dataclass(frozen=True, slots=True)
class _Field:
    info: FieldInfo
    variable: str
    shared: SharedVariable | None

    @property
    def shared_variable(self) -> str | None:
        """The shared variable's name."""
        return self.shared.name if self.shared else None

    @property
    def is_secret(self) -> bool:
        """A field that is kept out of its model's repr is kept out of messages too."""
        return not self.info.repr or self.info.annotation is SecretStr


_Fields: TypeAlias = Mapping[tuple[str, str], _Field]


class _Environment(PydanticBaseSettingsSource):
    """The variables as values of their fields, with every section there, so that what it lacks is named."""

    def __init__(
        self, cls: type[NodeSettings], fields: _Fields, given: Mapping[tuple[str, str], str], environ: Mapping[str, str]
    ) -> None:
        super().__init__(cls)
        self._fields = fields
        self._given = given
        self._environ = environ

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[dict[str, Any], str, bool]:
        values = {
            name: self._decoded(self._fields[section, name], variable)
            for (section, name), variable in self._given.items()
            if section == field_name
        }
        return values, field_name, False

    def __call__(self) -> dict[str, Any]:
        return {name: self.get_field_value(info, name)[0] for name, info in self.settings_cls.model_fields.items()}

    def _decoded(self, field: _Field, variable: str) -> object:
        value = self._environ[variable]
        if field.shared and field.shared.name == variable and field.shared.unit != 1:
            return _scaled(value, field.shared.unit)
        if not self.field_is_complex(field.info):
            return value
        try:
            return json.loads(value)
        except ValueError:
            # The field refuses it with its name.
            return value


def _scaled(value: str, unit: float) -> object:
    """The number in the field's unit; what is none the field refuses."""
    try:
        return float(value) * unit
    except ValueError:
        return value


def _prefix(node: str) -> str:
    # Two underscores, because Kubernetes puts OMNIBRIDGE_STAMPING_PORT=tcp://.. into every pod beside a service of that name.
    return f"OMNIBRIDGE_{node.upper()}__"


def _fields(cls: type[NodeSettings], node: str) -> _Fields:
    found = {}
    for section, of_section in cls.model_fields.items():
        model = of_section.annotation
        if not (isinstance(model, type) and issubclass(model, BaseModel)) or not of_section.is_required():
            raise TypeError(f"{cls.__name__}.{section} must be a section: a model, without a default")
        for name, info in model.model_fields.items():
            shared = next((mark for mark in info.metadata if isinstance(mark, SharedVariable)), None)
            found[section, name] = _Field(info, f"{_prefix(node)}{section.upper()}__{name.upper()}", shared)
    return found


def _given(fields: _Fields, environ: Mapping[str, str]) -> dict[tuple[str, str], str]:
    """The variable that sets each field that is set."""
    return {
        key: variable
        for key, field in fields.items()
        for variable in reversed((field.variable, field.shared_variable))
        if variable is not None and environ.get(variable)
    }


def _problem(fields: _Fields, given: Mapping[tuple[str, str], str], contract: Contract, detail: ErrorDetails) -> str:
    location = detail["loc"]
    section, name = (*map(str, location), "", "")[:2]
    field = fields.get((section, name))
    if detail["type"] == "extra_forbidden":
        reason = "is no setting"
    elif detail["type"] in _UNSAID and (field is None or field.is_secret):
        reason = "is malformed"
    else:
        reason = re.sub(r"^\w+ should ", "must ", " ".join(detail["msg"].split()))
    if variable := given.get((section, name)):
        return f"{variable}: {reason}"
    if field is not None and detail["type"] == "missing":
        return f"{' or '.join(filter(None, (field.variable, field.shared_variable)))}: must be set"
    return f"{contract.place('settings', *location)}: {'.'.join(('settings', *map(str, location)))}: {reason}"


def _type_name(annotation: object) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")


def _default(field: _Field, contract: Contract, section: str, name: str) -> str | None:
    values = contract.settings.get(section)
    contracted = values if isinstance(values, dict) else {}
    if field.info.is_required() and name not in contracted:
        return None
    if field.is_secret:
        return "(secret)"
    default = field.info.get_default(call_default_factory=True, validated_data={})
    return json.dumps(contracted.get(name, default), default=str)
