"""Messages with every field at its extreme, made from a descriptor alone."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

_DEPTH = 3
"""How deep messages within messages are filled; a Struct's own recursion ends here."""
_REPEATED = 501
"""One more than any batch takes."""
_LONG, _SHORTER = 300, 20
"""Of a text in the message itself, and in one of its many messages: all together stay below what gRPC itself refuses."""

_F = FieldDescriptor
_HIGH: dict[int, Any] = {
    **dict.fromkeys((_F.CPPTYPE_INT32, _F.CPPTYPE_ENUM), 2**31 - 1),
    _F.CPPTYPE_INT64: 2**63 - 1,
    _F.CPPTYPE_UINT32: 2**32 - 1,
    _F.CPPTYPE_UINT64: 2**64 - 1,
    **dict.fromkeys((_F.CPPTYPE_DOUBLE, _F.CPPTYPE_FLOAT), float("inf")),
    _F.CPPTYPE_BOOL: True,
}
_LOW: dict[int, Any] = {
    **dict.fromkeys((_F.CPPTYPE_INT32, _F.CPPTYPE_ENUM), -(2**31)),
    _F.CPPTYPE_INT64: -(2**63),
    **dict.fromkeys((_F.CPPTYPE_UINT32, _F.CPPTYPE_UINT64), 0),
    **dict.fromkeys((_F.CPPTYPE_DOUBLE, _F.CPPTYPE_FLOAT), float("nan")),
    _F.CPPTYPE_BOOL: False,
}


def fill(message: Message, *, high: bool, depth: int = _DEPTH) -> None:
    """Sets every field of `message` to its highest, or its lowest, value; of a oneof, its last or its first."""
    fields: list[Any] = list(message.DESCRIPTOR.fields)
    for field in fields if high else reversed(fields):
        if field.message_type and field.message_type.GetOptions().map_entry:
            continue
        if field.message_type:
            _fill_messages(message, field, high=high, depth=depth)
        elif field.is_repeated:
            count = _REPEATED if high and depth == _DEPTH else 1
            getattr(message, field.name).extend([_scalar(field, high=high, depth=depth)] * count)
        else:
            setattr(message, field.name, _scalar(field, high=high, depth=depth))


def _fill_messages(message: Message, field: FieldDescriptor, *, high: bool, depth: int) -> None:
    if depth == 0:
        return
    count = _REPEATED if high and depth == _DEPTH else 1
    parts = (
        [getattr(message, field.name).add() for _ in range(count)]
        if field.is_repeated
        else [getattr(message, field.name)]
    )
    for part in parts:
        part.SetInParent()
        fill(part, high=high, depth=depth - 1)


def _scalar(field: FieldDescriptor, *, high: bool, depth: int) -> Any:
    length = _LONG if depth == _DEPTH else _SHORTER
    if field.type == _F.TYPE_STRING:
        return "\0\U0010ffff../" * length if high else "\0"
    if field.type == _F.TYPE_BYTES:
        return b"\xff\0" * length if high else b""
    return (_HIGH if high else _LOW)[field.cpp_type]
