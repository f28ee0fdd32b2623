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


class Sealer:
    """Makes the tokens of one query, a JSON-able mapping, and reads them."""

    def __init__(self, query: Mapping[str, object]) -> None:
        self._query = json.dumps(query, sort_keys=True).encode() + b"\0"

    def seal(self, values: Sequence[object]) -> str:
        """The token of `values`, which are JSON-able."""
        payload = json.dumps([_VERSION, *values], separators=(",", ":")).encode()
        return base64.urlsafe_b64encode(self._mark(payload) + payload).rstrip(b"=").decode()

    def unseal(self, token: str) -> list[Any]:
        """The values of a token that `seal` made for this query. Raises TokenMismatch."""
        try:
            raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError) as error:
            raise TokenMismatch from error
        if base64.urlsafe_b64encode(raw).rstrip(b"=").decode() != token:
            raise TokenMismatch
        mark, payload = raw[:_HASH_BYTES], raw[_HASH_BYTES:]
        if mark != self._mark(payload):
            raise TokenMismatch
        # Whoever knows how can make one: the mark proves no origin.
        try:
            values = json.loads(payload)
        except ValueError as error:
            raise TokenMismatch from error
        if not isinstance(values, list) or values[:1] != [_VERSION]:
            raise TokenMismatch
        return values[1:]

    def _mark(self, payload: bytes) -> bytes:
        """Binds the values to the query, and shows damage to either."""
        return blake3(self._query + payload).digest(length=_HASH_BYTES)
