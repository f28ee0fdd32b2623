"""Watches of a store, read as tests want them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from services.chassis.feed import FeedSettings

_BOUND = 20.0
"""Seconds; what has not come by then does not come."""
QUIET = FeedSettings(poll_seconds=60, checkpoint_seconds=60)
"""Only notifications wake it, and nothing is heard but what happens."""


class Watch:
    """A call of some Watch: its items so far, the last cursor, the notices."""

    def __init__(self, call: Any) -> None:
        self._call = aiter(call)
        self.items: list[Any] = []
        self.cursor = ""
        self.notices: list[str] = []

    async def hear(self) -> Any:
        """The next response."""
        async with asyncio.timeout(_BOUND):
            response = await anext(self._call)
        kind = response.WhichOneof("notice")
        if kind:
            self.notices.append(kind)
            notice = getattr(response, kind)
            self.cursor = notice.oldest_cursor if kind == "reset" else notice.position
        else:
            self.items += response.items
            self.cursor = response.cursor
        return response

    async def until(self, notice: str) -> list[Any]:
        """Hears on to the next notice of this kind; all items so far."""
        async with asyncio.timeout(_BOUND):
            while (await self.hear()).WhichOneof("notice") != notice:
                pass
        return self.items

    async def until_items(self, count: int) -> list[Any]:
        """Hears on until there are as many items; all items so far."""
        async with asyncio.timeout(_BOUND):  # of all together: checkpoints come for ever
            while len(self.items) < count:
                await self.hear()
        return self.items


@asynccontextmanager
async def watching(call: Any) -> AsyncIterator[Watch]:
    """A watch that is cancelled at the end of the context."""
    try:
        yield Watch(call)
    finally:
        call.cancel()
