"""Streams the records of a file or a pipe into a session of aggregation, across broken connections, each counted once.

A record's offset is its line's number. What was read is kept until it is acknowledged, so a pipe is resumed like a file. What
becomes of the answers is a Listener's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

from omninode.bridge.reducer.v1 import aggregation_pb2 as pb
from omninode.bridge.reducer.v1.reducer_pb2_grpc import ReducerServiceStub
from services.chassis.errors import BridgeError, Unavailable
from services.cli.backlog import Backlog, Batch
from services.cli.failure import CommandError
from services.cli.following import Patience
from services.cli.lines import Lines
from services.cli.record import Record, parse, to_columns

MOST_RECORDS = 10_000
"""In a message; the contract's bound."""
_BATCH_BYTES = 2 * 1024 * 1024
"""Of lines in a message: far below the 16 MiB of a message even when its numbers are written out at length."""


class Listener(Protocol):
    """Who is told what becomes of the lines."""

    def begun(self, offset: int) -> None:
        """The session has counted the lines before `offset`; they are passed over."""

    def counted(self, count: int) -> None:
        """So many records are committed, those that were rejected among them."""

    def panes(self, panes: Sequence[pb.Pane]) -> None:
        """Each that is not early comes once, with its acknowledgement."""

    def rejected(self, items: Sequence[pb.RejectedItem]) -> None:
        """Each comes once, with its acknowledgement."""

    def malformed(self, line: int, why: str) -> None:
        """The line is no record and is passed over. A CommandError ends the reading."""

    def acknowledged(self, offset: int) -> None:
        """Everything up to this line is committed, and all that came of it was told."""


@dataclass(slots=True)
class _Connection:
    """What the two directions of one call know of each other."""

    opened: asyncio.Future[pb.Opened]
    sender: asyncio.Task[Any] | None = None


class Feeding:
    """One input on its way into one session."""

    def __init__(
        self,
        stub: ReducerServiceStub,
        opening: pb.OpenSession,
        lines: Lines,
        *,
        batch: int,
        finish: bool,
        patience: Patience,
        listener: Listener,
    ) -> None:
        """`batch` records at most go in a message; `finish` ends the session when the input ends."""
        self._stub = stub
        self._opening = opening
        self._lines = lines
        self._batch = batch
        self._finish = finish
        self._patience = patience
        self._listener = listener
        self._backlog = Backlog()
        self._reader: asyncio.Task[None] | None = None
        self._read_whole = False
        self._finished = False
        """Whether the session's end was acknowledged."""
        self._panes: list[pb.Pane] = []
        self._rejected: list[pb.RejectedItem] = []
        """What was answered and not acknowledged yet: after a break it is answered again."""

    async def run(self) -> None:
        """Returns when all is acknowledged. Raises what the session is refused with, what its listener raises, and OSError; what
        was read before the input failed is acknowledged then.
        """
        try:
            while not await self._attempt():
                self._panes.clear()
                self._rejected.clear()
            if self._reader:
                await self._reader
        finally:
            if self._reader:
                self._reader.cancel()
                await asyncio.gather(self._reader, return_exceptions=True)

    async def _attempt(self) -> bool:
        """Whether all is acknowledged; if not, the connection broke, and may be made again."""
        try:
            if await self._converse():
                return True
            error: BridgeError = Unavailable("the stream ended before all was acknowledged")
        except BridgeError as broken:
            if self._is_acknowledged():
                return True
            error = broken
        await self._patience.endure(error)
        return False

    async def _converse(self) -> bool:
        """One connection, until the other side ends it; whether all is acknowledged then."""
        connection = _Connection(asyncio.get_running_loop().create_future())
        call = self._stub.Aggregate(self._requests(connection))
        try:
            async for response in call:
                self._patience.heard()
                if response.HasField("opened"):
                    await self._resume(response.opened)
                    connection.opened.set_result(response.opened)
                await self._take(response)
        finally:
            call.cancel()
            connection.opened.cancel()
            if connection.sender:
                # A call that is over leaves its requests waiting.
                connection.sender.cancel()
        if connection.opened.cancelled() or not self._backlog.is_done:
            return False
        # This end comes after all answers, also those to what an earlier connection sent, which nothing need acknowledge.
        opened = connection.opened.result()
        await self._acknowledge(max(self._opening.acknowledged_offset, opened.next_offset - 1))
        return self._finished or opened.session.finished or not self._is_to_finish()

    async def _requests(self, connection: _Connection) -> AsyncGenerator[pb.AggregateRequest, None]:
        connection.sender = asyncio.current_task()
        yield pb.AggregateRequest(open=self._opening)
        opened = await connection.opened
        offset = 0
        while batch := await self._backlog.following(offset):
            yield pb.AggregateRequest(columns=batch.columns)
            offset = batch.last
        if self._is_to_finish() and not opened.session.finished:
            yield pb.AggregateRequest(finish=pb.Finish())

    async def _resume(self, opened: pb.Opened) -> None:
        seen = self._opening.acknowledged_offset
        if opened.next_offset <= seen:
            raise CommandError(
                f"reducer: session {self._opening.session} goes on at line {opened.next_offset}, though line {seen} was"
                " acknowledged; was its database restored?"
            )
        if self._reader is None:
            self._listener.begun(opened.next_offset)
            self._reader = asyncio.create_task(self._read(opened.next_offset))
        else:
            self._listener.counted(await self._backlog.strike(opened.next_offset - 1))

    async def _take(self, response: pb.AggregateResponse) -> None:
        # Early panes are never repeated, so there is nothing to wait for.
        self._listener.panes([pane for pane in response.panes if pane.timing == pb.PANE_TIMING_EARLY])
        self._panes += [pane for pane in response.panes if pane.timing != pb.PANE_TIMING_EARLY]
        self._rejected += response.rejected
        if response.HasField("acknowledgement"):
            self._finished = self._finished or response.acknowledgement.finished
            await self._acknowledge(response.acknowledgement.offset)

    async def _acknowledge(self, offset: int) -> None:
        self._listener.panes(self._panes)
        self._listener.rejected(self._rejected)
        self._panes, self._rejected = [], []
        self._listener.counted(await self._backlog.strike(offset))
        self._opening.acknowledged_offset = max(self._opening.acknowledged_offset, offset)
        self._listener.acknowledged(self._opening.acknowledged_offset)

    def _is_acknowledged(self) -> bool:
        """Whether nothing is missing of what was read, be it that the connection broke after it."""
        if self._is_to_finish():
            return self._finished
        last = self._backlog.last
        return self._backlog.is_done and 0 < last <= self._opening.acknowledged_offset

    def _is_to_finish(self) -> bool:
        """An input that failed is to be gone on with."""
        return self._finish and self._read_whole

    async def _read(self, first: int) -> None:
        """Everything from line `first` on into the backlog."""
        number = begin = size = 0
        records: list[Record] = []

        async def flush() -> None:
            nonlocal size
            if records:
                await self._backlog.add(Batch(to_columns(begin, records), size))
                records.clear()
                size = 0

        try:
            async with aclosing(self._lines.read()) as chunks:
                async for lines in chunks:
                    if not lines:
                        await flush()
                    for line in lines:
                        number += 1
                        record = self._record(number, line) if number >= first else None
                        if record is None or len(records) == self._batch or size + len(line) > _BATCH_BYTES:
                            # The offsets of a message have no gaps.
                            await flush()
                        if record is not None:
                            begin = begin if records else number
                            records.append(record)
                            size += len(line)
            await flush()
            self._read_whole = True
        except (OSError, CommandError):
            await flush()
            raise
        finally:
            await self._backlog.end()

    def _record(self, number: int, line: bytes) -> Record | None:
        """The line's record; None where it is passed over."""
        if not line.strip():
            return None
        try:
            return parse(line)
        except ValueError as error:
            self._listener.malformed(number, str(error))
            return None
