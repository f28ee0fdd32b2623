"""Follows a feed of a node across broken connections, from the last cursor on. What is done with the items is the caller's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, Literal, Protocol, TypeVar

from omninode.bridge.feed.v1 import feed_pb2
from services.chassis.errors import BridgeError, Unavailable
from services.cli import target
from services.cli.failure import CommandError, complain

T = TypeVar("T")
Item_co = TypeVar("Item_co", covariant=True)

SILENCE_SECONDS = 30.0
"""A feed says something every few seconds; one that is silent for so long has lost its connection without noticing."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.2, 5.0
"""Between two tries while a node is away, doubled at each: a restarted node is back in a second or two."""
_RESETS = {
    feed_pb2.RESET_REASON_RETENTION: "what follows the cursor is older than the feed keeps",
    feed_pb2.RESET_REASON_UNKNOWN_POSITION: "the feed never came to the cursor's place; was its database restored?",
}


class Request(Protocol):
    """The request of any Watch."""

    cursor: str
    from_beginning: bool


class Response(Protocol[Item_co]):
    """The response of any Watch: items, or a notice."""

    @property
    def items(self) -> Sequence[Item_co]: ...

    @property
    def cursor(self) -> str: ...

    @property
    def reset(self) -> feed_pb2.Reset: ...

    def WhichOneof(self, oneof_group: Literal["notice"]) -> str | None: ...


RequestT = TypeVar("RequestT", bound=Request)
ResponseT = TypeVar("ResponseT", bound=Response[Any])


class FeedReset(CommandError):
    """The feed cannot go on from the cursor; the message has the oldest one."""


class Patience:
    """Waits while a node is away, however long, and says so once each time that it goes."""

    def __init__(self, node: str, tell: Callable[[str], None] = complain) -> None:
        self._node = node
        self._tell = tell
        self._was_there = False
        """Whether a node ever answered: one that never did is not restarting, it was not started."""
        self._told = False
        self._pause = FIRST_PAUSE_SECONDS

    def heard(self) -> None:
        """To be told whenever the node answers."""
        self._was_there, self._told, self._pause = True, False, FIRST_PAUSE_SECONDS

    async def endure(self, error: BridgeError) -> None:
        """Returns when the call may be made again. Raises `error` where that does not help, and where no node ever answered."""
        self._was_there = self._was_there or not target.is_nobody_there(error)
        if not (self._was_there and target.is_transient(error)):
            raise error
        if not self._told:
            self._told = True
            gone = target.is_nobody_there(error)
            why = "no node answers" if gone else f"{target.reason_of(error)}: {target.message_of(error)}"
            self._tell(f"{self._node}: {why}; reconnecting until it is back")
        await asyncio.sleep(self._pause)
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)

    async def through(self, call: Callable[[], Awaitable[T]]) -> T:
        """The result of `call`, which is made again for as long as the node is away."""
        while True:
            try:
                answer = await call()
            except BridgeError as error:
                await self.endure(error)
            else:
                self.heard()
                return answer


async def follow(
    node: str, watch: Callable[[RequestT], AsyncIterable[ResponseT]], request: RequestT, patience: Patience
) -> AsyncGenerator[ResponseT, None]:
    """Every response of the feed in order, each once, but for its Reset; it does not end by itself.

    What breaks is begun again behind the last response; `request` is used up on the way. Raises FeedReset, and a refusal that
    trying again does not help.
    """
    while True:
        try:
            async with aclosing(_audible(watch(request))) as responses:
                async for response in responses:
                    patience.heard()
                    if response.WhichOneof("notice") == "reset":
                        raise _reset(node, response.reset)
                    yield response
                    if behind := position(response):
                        request.cursor, request.from_beginning = behind, False
            error: BridgeError = Unavailable("the stream ended")
        except BridgeError as broken:
            error = broken
        await patience.endure(error)


def position(response: Response[Any]) -> str:
    """The cursor behind a response, be it of items or a notice."""
    notice = response.WhichOneof("notice")
    return str(getattr(response, notice).position) if notice else response.cursor


async def _audible(call: Any) -> AsyncGenerator[Any, None]:
    """The responses of a call, which is cancelled when the caller leaves. Raises Unavailable when it is silent."""
    responses = aiter(call)
    try:
        while True:
            try:
                async with asyncio.timeout(SILENCE_SECONDS):
                    response = await anext(responses)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise Unavailable(f"nothing was heard for {SILENCE_SECONDS:g} s") from None
            yield response
    finally:
        call.cancel()


def _reset(node: str, reset: feed_pb2.Reset) -> FeedReset:
    why = _RESETS.get(reset.reason, "the feed cannot go on from the cursor")
    name = feed_pb2.ResetReason.Name(reset.reason) if reset.reason in feed_pb2.ResetReason.values() else "RESET"
    return FeedReset(f"{node}: {name}: {why}; what is still there begins with: --cursor {reset.oldest_cursor}")
