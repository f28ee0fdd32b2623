"""One Aggregate call: reads a writer's messages, commits in groups, answers. What a commit is, is the writer's.

Two tasks share the session's writer: one takes messages in, the other commits what gathered meanwhile. The first waits while two
groups are not committed, the second while answers are not taken: so a slow reader slows its own input, and nobody else's.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable, Iterator
from itertools import chain
from typing import Any

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.reducer.v1 import aggregation_pb2 as pb
from services.chassis.errors import BridgeError, invalid_field
from services.reducer.aggregation import request
from services.reducer.aggregation.config import SECOND, Strategy
from services.reducer.aggregation.contract import Terms
from services.reducer.aggregation.durable import Rejected
from services.reducer.aggregation.message import fill_pane, fill_time
from services.reducer.aggregation.metrics import AggregationMetrics
from services.reducer.aggregation.pane import Pane
from services.reducer.aggregation.writer import Committed, Writer

_RESPONSE_BYTES = 256 * 1024
"""Of one response, about; a message costs more than what it holds, and a reader's flow control has 64 KiB at least."""
_ITEM_BYTES = 200
"""A pane or a refusal, beside what a custom fold made, and the workflows' states."""
_STATE_BYTES = 80
_RESPONSES = 4
"""Responses that wait to be taken."""


class Stream:
    """One writer's call, after its first message. `now` is the event loop's time in seconds."""

    def __init__(
        self,
        writer: Writer,
        requests: AsyncIterator[pb.AggregateRequest],
        terms: Terms,
        metrics: AggregationMetrics,
        *,
        now: Callable[[], float],
        latest: Callable[[], int],
    ) -> None:
        """`latest` gives the last event time that an item may have now, in microseconds."""
        self._writer = writer
        self._requests = requests
        self._terms = terms
        self._metrics = metrics
        self._now = now
        self._latest = latest
        config = writer.head.config
        self._payloads = Strategy.CUSTOM in config.strategies
        self._max_wait = config.max_wait / SECOND
        self._early = config.early_period / SECOND
        self._answers: asyncio.Queue[pb.AggregateResponse | BaseException | None] = asyncio.Queue(_RESPONSES)
        self._grown = asyncio.Event()
        """Set when something is to be committed, or the input is over."""
        self._room = asyncio.Event()
        """Set while more may be taken in."""
        self._room.set()
        self._waiting = 0
        """Items that are taken in and not committed."""
        self._since = 0.0
        """When the first of them came."""
        self._last_offset = 0
        """Of this stream's messages."""
        self._ended = False
        self._finish = False
        self._failure: BridgeError | None = None
        """What ends the stream, once what came before it is committed."""
        self._tasks: list[asyncio.Task[None]] = []
        self._committing: asyncio.Task[Committed] | None = None
        """Goes on when the stream is cut off, so that the writer knows what became of it."""

    async def responses(self) -> AsyncGenerator[pb.AggregateResponse, None]:
        """Everything that the stream answers after `opened`. Raises what ends it."""
        self._tasks = [asyncio.create_task(self._guarded(work)) for work in (self._read, self._commit)]
        try:
            while (answer := await self._answers.get()) is not None:
                if isinstance(answer, BaseException):
                    raise answer
                yield answer
        finally:
            self.abandon()

    def end(self, failure: BridgeError) -> None:
        """Ends the stream with a refusal, after what has come is committed."""
        self._close(failure)

    def cut(self, failure: BridgeError) -> None:
        """Ends the stream with a refusal at once."""
        self.abandon()
        # Whoever waits for an answer gets this one; what is not taken yet is dropped with its session.
        while not self._answers.empty():
            self._answers.get_nowait()
        self._answers.put_nowait(failure)

    def abandon(self) -> None:
        """Stops taking in and committing."""
        for task in self._tasks:
            task.cancel()

    async def stopped(self) -> None:
        """Returns when nothing of the stream runs any more."""
        left = [task for task in (*self._tasks, self._committing) if task]
        # A commit that failed meanwhile has nobody to tell.
        await asyncio.gather(*left, return_exceptions=True)

    async def _guarded(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await work()
        except Exception as failure:
            await self._answers.put(failure)

    async def _read(self) -> None:
        try:
            async for message in self._requests:
                await self._room.wait()
                if self._ended:
                    return
                await self._take(message)
                if self._finish:
                    # Not at the end of the stream, which looks the same to who is cut off.
                    break
        except BridgeError as failure:
            self._close(failure)
        else:
            self._close(None)

    async def _take(self, message: pb.AggregateRequest) -> None:
        frame = message.WhichOneof("frame")
        match frame:
            case "items" | "columns":
                batch = request.to_batch(
                    message.items if frame == "items" else message.columns,
                    limit=self._terms.batch_items,
                    latest=self._latest(),
                    payloads=self._payloads,
                )
                self._check_order(f"{frame}.first_offset", batch.first_offset, batch.last_offset)
                fresh = _after(batch, self._writer.offset)
                if fresh is not None:
                    await self._writer.add(fresh.columns, fresh.offsets, fresh.last_offset, fresh.invalid)
                    self._metrics.taken_in(len(fresh.offsets))
                    self._gathered(fresh.last_offset - fresh.first_offset + 1)
            case "heartbeat":
                offset, time = request.to_heartbeat(message.heartbeat, latest=self._latest())
                self._check_order("heartbeat.offset", offset, offset)
                if offset > self._writer.offset:
                    await self._writer.advance(time, offset)
                    self._gathered(1)
            case "finish":
                self._finish = True
            case _:
                raise request.first_frame() if frame == "open" else invalid_field("frame", "must be set")

    def _check_order(self, field: str, first: int, last: int) -> None:
        if first <= self._last_offset:
            raise invalid_field(field, f"must be above {self._last_offset}, the stream's last offset", value=str(first))
        self._last_offset = last

    def _gathered(self, items: int) -> None:
        if not self._waiting:
            self._since = self._now()
        self._waiting += items
        self._grown.set()
        if self._waiting >= 2 * self._terms.group_items:
            self._room.clear()

    def _close(self, failure: BridgeError | None) -> None:
        if not self._ended:
            self._ended, self._failure = True, failure
        self._room.set()
        self._grown.set()

    async def _commit(self) -> None:
        shown, acknowledged, unshown, is_part = self._now(), 0, False, False
        while True:
            if not is_part:
                await self._wait_for_group(shown + self._early if unshown else None)
            last = self._ended
            finish = last and self._finish and self._failure is None and not self._writer.head.finished
            early = bool(self._early) and self._now() - shown >= self._early
            counted, self._waiting = self._waiting, 0
            self._room.set()
            self._committing = asyncio.create_task(self._writer.commit(early=early, finish=finish, leave=last))
            committed = await asyncio.shield(self._committing)
            is_part = committed.is_part
            shown, unshown = (self._now(), False) if early else (shown, bool(self._early and (unshown or counted)))
            self._metrics.committed(committed)
            for response in responses_of(committed, finished=self._writer.head.finished):
                if is_part:
                    # What is acknowledged is answered in full.
                    response.ClearField("acknowledgement")
                if last or committed.offset > acknowledged or response.panes:
                    await self._answers.put(response)
            acknowledged = acknowledged if is_part else committed.offset
            if last and not is_part:
                await self._answers.put(self._failure)
                return

    async def _wait_for_group(self, showing: float | None) -> None:
        """Returns when what gathered is to be committed: it is enough, or has waited long enough, or is all there will be.

        Also at the time `showing`, when early panes are due.
        """
        while not self._ended:
            due = self._since + self._max_wait if self._waiting else showing
            if self._waiting >= self._terms.group_items or (due is not None and due <= self._now()):
                break
            self._grown.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if due is None else due - self._now()):
                    await self._grown.wait()


def responses_of(committed: Committed, *, finished: bool) -> Iterator[pb.AggregateResponse]:
    """What one commit is answered with: panes and refusals, then the acknowledgement."""
    response, size = pb.AggregateResponse(), 0
    answers: Iterable[Pane | Rejected] = chain(committed.panes, committed.early, committed.rejected)
    for answer in answers:
        if isinstance(answer, Rejected):
            _fill_rejected(response.rejected.add(), answer)
            size += _ITEM_BYTES
        else:
            fill_pane(response.panes.add(), answer)
            size += _ITEM_BYTES + _STATE_BYTES * len(answer.workflow_states) + len(answer.custom_json)
        if size > _RESPONSE_BYTES:
            yield response
            response, size = pb.AggregateResponse(), 0
    response.acknowledgement.offset = committed.offset
    if committed.watermark is not None:
        fill_time(response.acknowledgement.watermark, committed.watermark)
    response.acknowledgement.finished = finished
    yield response


def _fill_rejected(message: pb.RejectedItem, item: Rejected) -> None:
    message.offset = item.offset
    if item.watermark is None:
        message.rejection = pb.REJECTION_INVALID
        message.error.code = 3
        message.error.reason = errors_pb2.ERROR_REASON_INVALID_FIELD
        message.error.message = f"{item.field}: {item.description}"
        message.error.metadata["field"] = item.field
        message.error.field_violations.add(field=item.field, description=item.description)
        return
    message.rejection = pb.REJECTION_PARTLY_LATE if item.counted else pb.REJECTION_LATE
    fill_time(message.watermark, item.watermark)


def _after(batch: request.Batch, offset: int) -> request.Batch | None:
    """What of a batch comes after this offset."""
    if batch.first_offset > offset:
        return batch
    if batch.last_offset <= offset:
        return None
    kept = [place for place, item in enumerate(batch.offsets) if item > offset]
    return request.Batch(
        request.only(batch.columns, kept),
        [batch.offsets[place] for place in kept],
        [item for item in batch.invalid if item.offset > offset],
        offset + 1,
        batch.last_offset,
    )
