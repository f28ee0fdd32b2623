"""Prints what a feed shows, for every verb that watches one: an item a line, until its count, Ctrl-C or a Reset."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterable, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

import typer
from google.protobuf.message import Message

from services.cli import console
from services.cli.failure import complain
from services.cli.following import FeedReset, Patience, RequestT, Response, follow, position
from services.cli.target import Peer

Item = TypeVar("Item", bound=Message)
Item_contra = TypeVar("Item_contra", contravariant=True)
Stub = TypeVar("Stub")

_NOTES = {
    "caught_up": "caught up: what follows is new",
    "fell_behind": "fell behind: what was missed comes from the database",
}


class Face(Protocol[Item_contra]):
    """What a watch shows itself on, where lines are not enough."""

    def show(self, item: Item_contra) -> None: ...

    def note(self, line: str) -> None:
        """Where the feed is."""

    def complain(self, line: str) -> None:
        """Why nothing comes."""

    def leave(self, line: str) -> None:
        """How to go on from here, as the last word."""


class _Lines:
    """A line on stdout for each item, and the rest on stderr."""

    def __init__(self, line: Callable[[Any], str]) -> None:
        self._line = line

    def show(self, item: Any) -> None:
        console.say(self._line(item))

    def note(self, line: str) -> None:
        console.note(line)

    def complain(self, line: str) -> None:
        complain(line)

    leave = complain


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
    face: Face[Item] | None = None,
    settle: Callable[[Stub, Patience, Any, int], Awaitable[None]] = _leave,
) -> None:
    """Print the items of the feed that `request` asks for, at most `count` of them, and at the end the cursor to resume with.

    `settle` is given each response, and how many of its items were printed. A JSON line has a cursor behind which nothing is left
    out that follows the line; items that came in one response with it may come again. With a `face` no `line` is made.
    """
    if request.cursor and request.from_beginning:
        raise typer.BadParameter("--cursor and --from-beginning exclude each other")
    given = resume = request.cursor
    shown = face or _Lines(line)
    patience, left = Patience(peer.node, shown.complain), sys.maxsize if count is None else count
    try:
        async with (
            peer.at(target) as stub,
            aclosing(follow(peer.node, method(stub), request, patience)) as responses,
        ):
            async for response in responses:
                if note := _NOTES.get(response.WhichOneof("notice") or ""):
                    shown.note(note)
                behind, items = position(response) or resume, response.items[:left]
                for place, item in enumerate(items, 1):
                    if as_json:
                        last = place == len(response.items)
                        console.emit(console.as_json(item) | {"cursor": behind if last else resume})
                    else:
                        shown.show(item)
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
            shown.leave(f"to go on from here: --cursor {resume}")
