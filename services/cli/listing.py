"""Prints a list of a node's, for every verb that lists: a table with its count, or a JSON object a line."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import TypeVar

from google.protobuf.message import Message
from rich.table import Table

from services.cli import console, report
from services.cli.page import PageT, QueryT, walk
from services.cli.target import Peer

Item = TypeVar("Item", bound=Message)
Stub = TypeVar("Stub")


async def show(
    peer: Peer[Stub],
    target: str,
    method: Callable[[Stub], Callable[[QueryT], Awaitable[PageT]]],
    query: QueryT,
    *,
    items: Callable[[PageT], Sequence[Item]],
    table: Callable[[Sequence[Item]], Table],
    what: str,
    as_json: bool,
    limit: int = sys.maxsize,
    first: str = "newest",
    end: Callable[[], str] = str,
) -> None:
    """Print at most `limit` items of the query.

    `what` is one of them in words, `first` those that a list cut off shows, `end` gives what the last line says beside the count.
    """
    listed = []
    async with peer.at(target) as stub, aclosing(walk(method(stub), query, items, limit)) as found:
        async for item in found:
            if as_json:
                console.emit(console.as_json(item))
            else:
                listed.append(item)
    if as_json:
        return
    if listed:
        console.stdout().print(table(listed))
    cut = f", the {first}; --limit shows more" if len(listed) == limit else ""
    console.say(report.counted(len(listed), what) + cut + end())
