"""One watcher of a feed: its place, and how its responses are made."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from itertools import groupby
from typing import Any, Generic

from blake3 import blake3

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.feed.v1 import feed_pb2
from services.chassis import timestamp
from services.chassis.errors import invalid_field
from services.chassis.feed.log import Bounds, Mark, Position, R, Row, View
from services.chassis.feed.settings import FeedSettings
from services.chassis.token import Sealer, TokenMismatch


class Watcher(Generic[R]):
    """One watcher's place, and how its responses are made."""

    def __init__(self, view: View[R], settings: FeedSettings, mark: Mark) -> None:
        self.view = view
        self.key = blake3(json.dumps(view.filters, sort_keys=True).encode()).digest()
        """What watchers with equal filters have in common."""
        self._sealer = Sealer(view.filters)
        self._mark = mark
        self.position: Position = {}
        self.ended = False
        self._settings = settings
        self._heard = _now()

    def heard(self) -> None:
        """Says that the watcher was sent something."""
        self._heard = _now()

    def silence(self) -> float:
        """Seconds until it must hear something."""
        return self._heard + self._settings.checkpoint_seconds - _now()

    async def hears(self, news: asyncio.Event) -> bool:
        """Waits for news until the watcher must hear something; whether they came."""
        try:
            async with asyncio.timeout(self.silence()):
                await news.wait()
        except TimeoutError:
            return False
        return True

    async def takes(self, turn: asyncio.Semaphore) -> bool:
        """Waits for its turn until the watcher must hear something; whether it came."""
        try:
            async with asyncio.timeout(self.silence()):
                await turn.acquire()
        except TimeoutError:
            return False
        return True

    def responses(self, rows: Sequence[R], begin: Position) -> list[bytes]:
        """What the view shows of the rows, whose first are at `begin`, in responses of a bounded size."""
        encoded: list[bytes] = []
        # Of a response that ends within an offset the cursor is that before it: who begins there sees the offset again, whole.
        place = dict(_only(self.view, begin))
        response, size = self.view.response(), 0
        for (partition, offset), of_offset in groupby(rows, key=_place_of):
            if partition not in place:
                continue
            for item in self.view.items(list(of_offset)):
                item_size = item.ByteSize()
                if size and size + item_size > self._settings.message_bytes:
                    encoded.append(self._ended(response, place))
                    response, size = self.view.response(), 0
                response.items.append(item)
                size += item_size
            place[partition] = offset + 1
        if size:
            encoded.append(self._ended(response, place))
        return encoded

    def _ended(self, response: Any, place: Position) -> bytes:
        response.cursor = self._cursor_of(place)
        self._mark(response, place)
        encoded: bytes = response.SerializeToString()
        return encoded

    def notice(self, kind: str, time: datetime | None = None) -> bytes:
        """A notice of the watcher's place."""
        self.heard()
        response = self.view.response()
        notice = getattr(response, kind)
        place = _only(self.view, self.position)
        notice.position = self._cursor_of(place)
        self._mark(response, place)
        if time is not None:
            timestamp.fill(notice.time, time)
        encoded: bytes = response.SerializeToString()
        return encoded

    def reset(self, position: Position, bounds: Mapping[int, Bounds]) -> bytes | None:
        """The Reset of a place from which the feed cannot go on; None where it can."""
        if any(partition not in bounds or offset > bounds[partition].next for partition, offset in position.items()):
            reason = feed_pb2.RESET_REASON_UNKNOWN_POSITION
        elif any(offset < bounds[partition].first for partition, offset in position.items()):
            reason = feed_pb2.RESET_REASON_RETENTION
        else:
            return None
        response = self.view.response()
        response.reset.reason = reason
        oldest = {partition: bound.first for partition, bound in bounds.items()}
        response.reset.oldest_cursor = self._cursor_of(oldest)
        encoded: bytes = response.SerializeToString()
        return encoded

    def position_of(self, cursor: str, partitions: Collection[int]) -> dict[int, int]:
        """The place that a cursor names in these partitions, all that the view sees. Raises InvalidArgument (CURSOR_MISMATCH)."""
        try:
            offsets = self._sealer.unseal(cursor)
        except TokenMismatch:
            offsets = []
        if len(offsets) != len(partitions) or not all(type(offset) is int and offset >= 0 for offset in offsets):
            raise invalid_field(
                "cursor",
                "must be a cursor that this feed gave out with the same filters",
                reason=errors_pb2.ERROR_REASON_CURSOR_MISMATCH,
            )
        return dict(zip(sorted(partitions), offsets, strict=True))

    def _cursor_of(self, position: Position) -> str:
        return self._sealer.seal([position[partition] for partition in sorted(position)])


def _only(view: View[Any], position: Position) -> Position:
    if view.partitions is None:
        return position
    return {partition: position[partition] for partition in view.partitions if partition in position}


def _place_of(row: Row) -> tuple[int, int]:
    return row.partition, row.offset


def _now() -> float:
    return asyncio.get_running_loop().time()
