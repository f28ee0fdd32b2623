"""Opaque tokens that a client gives back: a few values, bound to the query that they belong to. Pure."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any

from blake3 import blake3

_VERSION = 1
_HASH_BYTES = 8
"""Enough to tell queries apart by mistake; a token is no secret and grants nothing that the query would not."""


class TokenMismatch(ValueError):
    """The text is no token, is damaged, or belongs to another query."""


def seal(values: Sequence[object], query: Mapping[str, object]) -> str:
    """The token of `values`, which are JSON-able, as `query` is."""
    payload = json.dumps([_VERSION, *values], separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(_mark(payload, query) + payload).rstrip(b"=").decode()


def unseal(token: str, query: Mapping[str, object]) -> list[Any]:
    """The values of a token that `seal` made for this query. Raises TokenMismatch."""
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise TokenMismatch from error
    if base64.urlsafe_b64encode(raw).rstrip(b"=").decode() != token:
        raise TokenMismatch
    mark, payload = raw[:_HASH_BYTES], raw[_HASH_BYTES:]
    if mark != _mark(payload, query):
        raise TokenMismatch
    values: list[Any]
    version, *values = json.loads(payload)
    if version != _VERSION:
        raise TokenMismatch
    return values


def _mark(payload: bytes, query: Mapping[str, object]) -> bytes:
    """Binds the values to the query, and shows damage to either."""
    return blake3(json.dumps(query, sort_keys=True).encode() + b"\0" + payload).digest(length=_HASH_BYTES)
