"""O.N.E. v0.1: what a tool's metadata must say, and where a file says it.

Pure. Top-level keys that the protocol does not name are let through, because public blocks carry many of their own; the
objects that it names are closed. How a stamp stands in a file is embedding's work.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from services.chassis.errors import FieldViolation, from_validation
from services.chassis.yaml_document import DocumentError, read

PROTOCOL = "O.N.E. v0.1"
MAX_BLOCK_VALUES = 2_000
"""Values in a block; the largest public ones have some fifty."""
MAX_ITEMS = 1_000
"""Of a list or mapping that the protocol names, because each item may be a violation of its own."""
BLOCK = "block"
"""The field of a violation that is of no field: text that holds no metadata at all."""

_URL = re.compile(r"https?://[^\s/?#]+\S*")


def _metadata_version(value: object) -> object:
    if isinstance(value, bool) or value not in (0.1, "0.1"):
        raise ValueError("must be 0.1")
    return value


def _protocols(value: list[str]) -> list[str]:
    if PROTOCOL not in value:
        raise ValueError(f'must hold "{PROTOCOL}"')
    return value


def _text_or_number(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value == "":
        raise ValueError("must be text or a number")
    return value


def _url(value: str) -> str:
    if not _URL.fullmatch(value):
        raise ValueError("must be an http or https URL")
    return value


Text: TypeAlias = Annotated[str, Field(min_length=1)]
Texts: TypeAlias = Annotated[list[Text], Field(max_length=MAX_ITEMS)]
TextOrNumber: TypeAlias = Annotated[object, AfterValidator(_text_or_number)]
Url: TypeAlias = Annotated[str, AfterValidator(_url)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Encryption(_Part):
    """Which of the fields are encrypted, and how."""

    encrypted_fields: Texts | None = None
    encryption_alg: Text | None = None


class Platform(_Part):
    """One platform on which the tool runs."""

    os: Text
    arch: Text
    python: TextOrNumber | None = None
    """Absent for what is not written in Python."""


class RuntimeConstraints(_Part):
    """What the tool needs of where it runs."""

    sandboxed: bool | None = None
    privileged: bool | None = None
    requires_network: bool | None = None
    requires_gpu: bool | None = None


class Policy(_Part):
    """What the tool is allowed."""

    network_access: bool | None = None
    allowed_endpoints: Texts | None = None
    resource_limits: dict[str, TextOrNumber] | None = Field(None, max_length=MAX_ITEMS)
    compliance_requirements: Texts | None = None


class ToolMetadata(BaseModel):
    """A tool's metadata, version 0.1. An optional field may be null."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    metadata_version: Annotated[object, AfterValidator(_metadata_version)]
    name: Text
    namespace: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,255}$")
    version: str = Field(pattern=r"^[0-9]+\.[0-9]+\.[0-9]+$")
    entrypoint: Text
    protocols_supported: Annotated[Texts, AfterValidator(_protocols)]
    signature_alg: Literal["ed25519"] | None = None
    signature_format: Text | None = None
    signed_by: Text | None = None
    encryption: Encryption | None = None
    platform_matrix: list[Platform] | None = Field(None, max_length=MAX_ITEMS)
    runtime_constraints: RuntimeConstraints | None = None
    policy: Policy | None = None
    test_suite: bool | None = None
    """Whether there is one."""
    test_status: Text | None = None
    coverage: float | None = Field(None, ge=0, le=100)
    ci_url: Url | None = None
    registry_url: Url | None = None
    dynamic_fields: Texts | None = None
    """Names of the fields that a registry keeps; they need not stand here."""


def validate_metadata(values: Mapping[str, object]) -> list[FieldViolation]:
    """Every violation, in the order of the protocol's fields; none if the metadata is of O.N.E. v0.1.

    Values are as JSON or YAML has them; a whole number may come as a float.
    """
    try:
        ToolMetadata.model_validate(dict(values))
    except ValidationError as error:
        return list(from_validation(error).violations)
    return []


def validate_block(text: str) -> list[FieldViolation]:
    """The violations of the metadata in `text`: YAML alone, or a file with a block between its marks, the first one.

    The text's size is the caller's to bound. Text that holds no metadata gives one violation, of the field `block`, with
    the line where there is one.
    """
    try:
        block = _find(text)
        values = read(block.yaml, max_values=MAX_BLOCK_VALUES).plain()
    except _UnreadableError as error:
        return [FieldViolation(BLOCK, str(error))]
    except DocumentError as error:
        return [FieldViolation(BLOCK, f"line {block.first_line + error.line - 1}: {error.reason}")]
    if not isinstance(values, dict):
        return [FieldViolation(BLOCK, f"line {block.first_line}: must be a mapping")]
    return validate_metadata(values)


class _UnreadableError(Exception):
    """The marks and what stands between them do not make a block."""


@dataclass(frozen=True, slots=True)
class _Block:
    yaml: str
    first_line: int


_SPACE = " \t"
_BREAK = re.compile(r"\r\n|\r|\n")
# Of a line without the white space around it: optional white space beside more of it takes quadratic time to refuse.
_OPENING = re.compile(r"(#|//|/\*)[ \t]*=== OmniNode:Tool_Metadata ===(?:[ \t]*\*/)?")
_CLOSING = re.compile(r"(?:(?:#|//|/?\*)[ \t]*)?=== /OmniNode:Tool_Metadata ===(?:[ \t]*\*/)?")
_PREFIX = {
    "#": re.compile(r"[ \t]*(?:# ?|$)"),
    "//": re.compile(r"[ \t]*(?:// ?|$)"),
    "*": re.compile(r"[ \t]*(?:\* ?|$)"),
    "": re.compile(""),
}


def _find(text: str) -> _Block:
    lines = _BREAK.split(text.removeprefix("\ufeff"))
    opening = next(
        ((at, mark) for at, line in enumerate(lines) if (mark := _OPENING.fullmatch(line.strip(_SPACE)))), None
    )
    if opening is None:
        return _Block(text, 1)
    first, comment = opening[0] + 1, opening[1][1]
    last = next((at for at in range(first, len(lines)) if _CLOSING.fullmatch(lines[at].strip(_SPACE))), None)
    if last is None:
        raise _UnreadableError(f"line {first}: the block is not closed")
    prefix = _inner_prefix(lines[first:last]) if comment == "/*" else comment
    return _Block("\n".join(_bare(lines[at], at + 1, prefix) for at in range(first, last)), first + 1)


def _inner_prefix(lines: list[str]) -> str:
    """What each line of a block comment begins with, as its first says: text further down may have bullets of its own.

    After a mark that closes its comment, each line is a comment of its own.
    """
    begin = next(filter(None, (line.strip(_SPACE) for line in lines)), "")
    return next(prefix for prefix in ("*", "//", "") if begin.startswith(prefix))


def _bare(line: str, number: int, prefix: str) -> str:
    found = _PREFIX[prefix].match(line)
    if found is None:
        raise _UnreadableError(f"line {number}: must begin with {prefix}")
    return line[found.end() :]
