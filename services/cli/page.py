"""Reads the lists of nodes, page by page."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

PAGE_SIZE = 1000
"""The contracts' largest."""


class Query(Protocol):
    """The request of any List."""

    page_size: int
    page_token: str


class Page(Protocol):
    """The response of any List."""

    @property
    def next_page_token(self) -> str: ...


QueryT = TypeVar("QueryT", bound=Query)
PageT = TypeVar("PageT", bound=Page)
Item = TypeVar("Item")


async def walk(
    call: Callable[[QueryT], Awaitable[PageT]],
    query: QueryT,
    items: Callable[[PageT], Sequence[Item]],
    limit: int = sys.maxsize,
) -> AsyncGenerator[Item, None]:
    """At most `limit` items of the query, in the list's order; `query` is used up on the way."""
    while limit > 0:
        query.page_size = min(limit, PAGE_SIZE)
        page = await call(query)
        found = items(page)[:limit]
        for item in found:
            yield item
        limit -= len(found)
        if not page.next_page_token:
            return
        query.page_token = page.next_page_token
