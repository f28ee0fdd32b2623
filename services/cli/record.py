"""A line of a JSONL file as a record to aggregate, and records as the columns in which a stream carries them. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from pydantic_core import from_json

from omninode.bridge.reducer.v1 import aggregation_pb2

LINE_BYTES = 1024 * 1024
"""The longest line; a record within the contract's bounds takes a few KiB."""
_MOST = 2**63 - 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_TIME = 253_402_300_799 * 1_000_000
"""The end of the year 9999: the last that google.protobuf.Timestamp has."""
_TEXTS = ("namespaces", "file_types", "workflow_ids", "workflow_states", "payloads_json")
"""The columns of texts, in a record's order."""


class Record(NamedTuple):
    """Something to count, in the order of the contract's columns."""

    time: int
    """Microseconds since 1970; 0 where the line has none, which the node refuses."""
    size: int
    namespace: str
    file_type: str
    workflow_id: str
    workflow_state: str
    payload: str


def parse(line: bytes) -> Record:
    """The record of a line; fields that it has beside those of a record are left alone. Raises ValueError, which says why not."""
    if len(line) > LINE_BYTES:
        raise ValueError(f"is longer than {LINE_BYTES:,} bytes")
    try:
        fields = from_json(line, allow_inf_nan=False)
    except ValueError as error:
        raise ValueError(f"is no JSON: {str(error).replace('line 1 ', '')}") from None
    if not isinstance(fields, dict):
        raise ValueError("is no JSON object")
    return Record(
        _time(fields.get("event_time")),
        _size(fields.get("size_bytes")),
        _text(fields, "namespace"),
        _text(fields, "file_type"),
        _text(fields, "workflow_id"),
        _text(fields, "workflow_state"),
        _payload(fields.get("payload")),
    )


def to_columns(first_offset: int, records: Sequence[Record]) -> aggregation_pb2.ItemColumns:
    """The message of records that follow each other; what none of them has is left out."""
    times, sizes, *texts = zip(*records, strict=True)
    message = aggregation_pb2.ItemColumns(first_offset=first_offset, event_times_us=times)
    if any(sizes):
        message.sizes_bytes.extend(sizes)
    places: dict[str, int] = {}
    for name, column in zip(_TEXTS, texts, strict=True):
        if any(column):
            getattr(message, name).extend([places.setdefault(text, len(places)) for text in column])
    message.texts.extend(places)
    return message


def _time(value: object) -> int:
    match value:
        case None:
            return 0
        case bool():
            time = 0
        case int():
            time = value * 1_000_000
        case float():
            time = round(value * 1_000_000) if abs(value) < _LAST_TIME else 0
        case str():
            time = _moment(value)
        case _:
            time = 0
    if not time or abs(time) > _LAST_TIME:
        raise ValueError("event_time: must be a time such as 2026-03-01T12:00:00Z, or seconds since 1970")
    return time


def _moment(text: str) -> int:
    """The moment in microseconds; 0 where the text is none, or names no zone."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return 0
    if moment.tzinfo is None:
        return 0
    since = moment - _EPOCH
    return (since.days * 86400 + since.seconds) * 1_000_000 + since.microseconds


def _size(value: object) -> int:
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > _MOST:
        raise ValueError("size_bytes: must be a whole number of 64 bits")
    return value


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{name}: must be a text")
    return value


def _payload(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, dict):
        raise ValueError("payload: must be an object")
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except ValueError:
        raise ValueError("payload: holds a number that is too large") from None
