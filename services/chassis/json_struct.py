"""google.protobuf.Struct and JSON objects: the same values, checked where they cross, for PostgreSQL takes less than protobuf."""

from __future__ import annotations

import json
import math
from typing import TypeAlias

from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct, Value

from services.chassis.errors import invalid_field

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

_EXACT_INTEGER = 2**53
"""A double holds every integer below this exactly; such a number is written without a fraction."""


def from_struct(struct: Struct, field: str) -> dict[str, Json]:
    """The JSON object of `struct`.

    Raises InvalidArgument that names the path below `field` of a number that JSON does not have (NaN, an infinity), of U+0000,
    which PostgreSQL's jsonb does not have, and of a value without a kind.
    """
    return {_text(key, field): _value(value, f"{field}.{key}") for key, value in struct.fields.items()}


def to_struct(text: str) -> Struct:
    """The Struct of a JSON object's text."""
    return json_format.Parse(text, Struct())


def canonical(value: Json) -> str:
    """JSON text that is the same for equal values: sorted keys, no white space."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _value(value: Value, path: str) -> Json:
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
            return from_struct(value.struct_value, path)
        case "list_value":
            return [_value(item, f"{path}[{index}]") for index, item in enumerate(value.list_value.values)]
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
