"""google.protobuf.Struct and JSON objects: the same values, checked where they cross, for PostgreSQL takes less than protobuf."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import TypeAlias

from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct, Value

from services.chassis.errors import invalid_field

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

_EXACT_INTEGER = 2**53
"""A double holds every integer below this exactly; such a number is written without a fraction."""
_MAX_DEPTH = 24
"""Levels of objects and lists. Protobuf's parsers stop at 100 messages within messages; an object is three of them, and an answer
holds the Struct a few levels deeper than its request did."""


def from_struct(struct: Struct, field: str) -> dict[str, Json]:
    """The JSON object of `struct`.

    Raises InvalidArgument that names the path below `field` of a number that JSON does not have (NaN, an infinity), of U+0000,
    which PostgreSQL's jsonb does not have, of a value without a kind, and of what is nested too deeply.
    """
    return _object(struct, field, 1)


def to_text(struct: Struct, field: str, limit: int) -> str:
    """The canonical text of `struct`. Raises InvalidArgument as from_struct does, and where it is more than `limit` bytes."""
    if not struct.fields:
        return "{}"
    text = canonical(from_struct(struct, field))
    size = len(text.encode())
    if size > limit:
        raise invalid_field(field, f"must be at most {limit} bytes as JSON", size_bytes=str(size))
    return text


def to_struct(text: str) -> Struct:
    """The Struct of a JSON object's text."""
    return json_format.Parse(text, Struct())


def canonical(value: Json) -> str:
    """JSON text that is the same for equal values: sorted keys, no white space."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _object(struct: Struct, path: str, depth: int) -> dict[str, Json]:
    _check_depth(depth, path)
    return {_text(key, path): _value(value, f"{path}.{key}", depth) for key, value in struct.fields.items()}


def _list(values: Iterable[Value], path: str, depth: int) -> list[Json]:
    _check_depth(depth, path)
    return [_value(item, f"{path}[{index}]", depth) for index, item in enumerate(values)]


def _check_depth(depth: int, path: str) -> None:
    if depth > _MAX_DEPTH:
        raise invalid_field(path, f"must be at most {_MAX_DEPTH} levels deep")


def _value(value: Value, path: str, depth: int) -> Json:
    match value.WhichOneof("kind"):
        case "null_value":
            return None
        case "bool_value":
            return value.bool_value
        case "number_value":
            return _number(value.number_value, path)
        case "string_value":
            return _text(value.string_value, path)
        case "struct_value":
            return _object(value.struct_value, path, depth + 1)
        case "list_value":
            return _list(value.list_value.values, path, depth + 1)
        case _:
            raise invalid_field(path, "a value must have a kind")


def _number(number: float, path: str) -> int | float:
    if not math.isfinite(number):
        raise invalid_field(path, "must be a finite number")
    return int(number) if number.is_integer() and abs(number) < _EXACT_INTEGER else number


def _text(text: str, path: str) -> str:
    if "\0" in text:
        raise invalid_field(path, "must not hold U+0000")
    return text
