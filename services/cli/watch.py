"""Prints what a feed shows, for every verb that watches one: an item a line, until its count, Ctrl-C or a Reset."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterable, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

import typer
from google.protobuf.message import Message

from services.cli import console
from services.cli.failure import complain
from services.cli.following import FeedReset, Patience, RequestT, Response, follow, position
from services.cli.target import Peer

Item = TypeVar("Item", bound=Message)
Stub = TypeVar("Stub")

_NOTES = {
    "caught_up": "caught up: what follows is new",
    "fell_behind": "fell behind: what was missed comes from the database",
}


async def _leave(_stub: Any, _patience: Patience, _response: Any, _printed: int) -> None:
    """Does nothing with what was printed."""


async def watch(
    peer: Peer[Stub],
    target: str,
    method: Callable[[Stub], Callable[[RequestT], AsyncIterable[Response[Item]]]],
    request: RequestT,
    line: Callable[[Item], str],
    *,
    as_json: bool,
    count: int | None,
    settle: Callable[[Stub, Patience, Any, int], Awaitable[None]] = _leave,
) -> None:
    """Print the items of the feed that `request` asks for, at most `count` of them, and at the end the cursor to resume with.

    `settle` is given each response, and how many of its items were printed. A JSON line has a cursor behind which nothing is left
    out that follows the line; items that came in one response with it may come again.
    """
    if request.cursor and request.from_beginning:
        raise typer.BadParameter("--cursor and --from-beginning exclude each other")
    given = resume = request.cursor
    patience, left = Patience(peer.node), sys.maxsize if count is None else count
    try:
        async with (
            peer.at(target) as stub,
            aclosing(follow(peer.node, method(stub), request, patience)) as responses,
        ):
            async for response in responses:
                if note := _NOTES.get(response.WhichOneof("notice") or ""):
                    console.note(note)
                behind, items = position(response) or resume, response.items[:left]
                for place, item in enumerate(items, 1):
                    if as_json:
                        last = place == len(response.items)
                        console.emit(console.as_json(item) | {"cursor": behind if last else resume})
                    else:
                        console.say(line(item))
                await settle(stub, patience, response, len(items))
                if len(items) == len(response.items):
                    resume = behind
                left -= len(items)
                if not left:
                    return
    except FeedReset:
        given = resume
        raise
    finally:
        if resume != given:
            complain(f"to go on from here: --cursor {resume}")
