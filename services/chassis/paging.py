"""Pages of a list: how many items one holds, and the opaque token that gives the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from omninode.bridge.errors.v1 import errors_pb2
from services.chassis.errors import invalid_field
from services.chassis.token import Sealer, TokenMismatch

Position: TypeAlias = Sequence[int | str | None]
"""Where a page ends: the values of the last item's sort key."""


def page_size(requested: int, default: int = 100, maximum: int = 1000) -> int:
    """The items of a page: `default` for 0, `maximum` for more than it. Raises InvalidArgument for a negative number.

    100 fill a screen and a round trip; 1,000 stamps with metadata stay well below the 16 MiB of a message.
    """
    if requested < 0:
        raise invalid_field("page_size", "must not be negative", value=str(requested))
    return min(requested or default, maximum)


def encode(position: Position, query: Mapping[str, object]) -> str:
    """The token of the page behind `position` in the list that `query`, a JSON-able mapping, asks for."""
    return Sealer(query).seal(position)


def decode(token: str, query: Mapping[str, object]) -> Position:
    """The position of a token. Raises InvalidArgument (PAGE_TOKEN_MISMATCH) unless `encode` made it for this query."""
    try:
        return Sealer(query).unseal(token)
    except TokenMismatch:
        raise invalid_field(
            "page_token",
            "must be the next_page_token of the same query",
            reason=errors_pb2.ERROR_REASON_PAGE_TOKEN_MISMATCH,
        ) from None
