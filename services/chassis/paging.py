"""Pages of a list: how many items one holds, and the opaque token that gives the next."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from blake3 import blake3

from omninode.bridge.errors.v1 import errors_pb2
from services.chassis.errors import InvalidArgument, invalid_field

Position: TypeAlias = Sequence[int | str | None]
"""Where a page ends: the values of the last item's sort key."""

_VERSION = 1
_HASH_BYTES = 8
"""Enough to tell queries apart by mistake; a token is no secret and grants nothing that the query would not."""


def page_size(requested: int, default: int = 100, maximum: int = 1000) -> int:
    """The items of a page: `default` for 0, `maximum` for more than it. Raises InvalidArgument for a negative number.

    100 fill a screen and a round trip; 1,000 stamps with metadata stay well below the 16 MiB of a message.
    """
    if requested < 0:
        raise invalid_field("page_size", "must not be negative", value=str(requested))
    return min(requested or default, maximum)


def encode(position: Position, query: Mapping[str, object]) -> str:
    """The token of the page behind `position` in the list that `query`, a JSON-able mapping, asks for."""
    payload = json.dumps([_VERSION, *position], separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(_mark(payload, query) + payload).rstrip(b"=").decode()


def decode(token: str, query: Mapping[str, object]) -> Position:
    """The position of a token. Raises InvalidArgument (PAGE_TOKEN_MISMATCH) unless `encode` made it for this query."""
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise _mismatch() from error
    if base64.urlsafe_b64encode(raw).rstrip(b"=").decode() != token:
        raise _mismatch()
    mark, payload = raw[:_HASH_BYTES], raw[_HASH_BYTES:]
    if mark != _mark(payload, query):
        raise _mismatch()
    position: list[int | str | None]
    version, *position = json.loads(payload)
    if version != _VERSION:
        raise _mismatch()
    return position


def _mark(payload: bytes, query: Mapping[str, object]) -> bytes:
    """Binds the position to the query, and shows damage to either."""
    return blake3(json.dumps(query, sort_keys=True).encode() + b"\0" + payload).digest(length=_HASH_BYTES)


def _mismatch() -> InvalidArgument:
    return invalid_field(
        "page_token",
        "must be the next_page_token of the same query",
        reason=errors_pb2.ERROR_REASON_PAGE_TOKEN_MISMATCH,
    )
