"""Coalescing: concurrent callers of the same write share one statement.

No timer: while one batch is in flight the next one gathers, so a lone caller waits for nobody and a crowd pays for one round trip.
A batch that is full has nothing left to gather and need not wait.
The store's commits, the ledger's inserts, heartbeats and the clients' Batch RPCs all go through here. What is written, and how, is
the owner's `write`; no SQL and no transport here.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from itertools import islice
from typing import Any, Generic, TypeAlias, TypeVar, cast

from omninode.bridge.errors.v1 import errors_pb2
from services.chassis.errors import BridgeError, DeadlineExceeded, ResourceExhausted, Unavailable

Item = TypeVar("Item")
Result = TypeVar("Result")
Write: TypeAlias = Callable[[Sequence[Item]], Awaitable[Sequence[Result | BridgeError]]]


class QueueFull(ResourceExhausted):
    """More calls wait for the database than the node holds in memory."""

    reason = errors_pb2.ERROR_REASON_QUEUE_FULL


class Stopped(Unavailable):
    """The node is stopping and takes no more writes."""

    reason = errors_pb2.ERROR_REASON_SHUTTING_DOWN


def spoiled_by_an_item(failure: Exception) -> bool:
    """Whether smaller batches can do better: not where the server is away, full or slow, for halving would be a storm on it."""
    return not isinstance(failure, (Unavailable, ResourceExhausted, DeadlineExceeded))


class _Call:
    """One caller: how many of its items have no outcome yet, and the future that ends its wait."""

    __slots__ = ("done", "pending")

    def __init__(self, pending: int) -> None:
        self.pending = pending
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class _Entry(Generic[Item, Result]):
    """One item of a caller, linked to its neighbours of the same key."""

    __slots__ = ("before", "behind", "call", "item", "key", "outcome", "taken", "weight")

    outcome: Result | Exception

    def __init__(self, item: Item, key: Hashable, weight: int, call: _Call) -> None:
        self.item = item
        self.key = key
        self.weight = weight
        self.call = call
        self.before: _Entry[Item, Result] | None = None
        self.behind: _Entry[Item, Result] | None = None
        self.taken = False


class Coalescer(Generic[Item, Result]):
    """Gathers the items of concurrent callers into batches, and gives each caller its own answers.

    Guarantees: a batch holds at most one item of a key, and items of a key are written in the order of their submission, across
    all batches. Keys take turns, so a hot key delays no other. An item that made its batch fail harms only its caller. A caller
    that is cancelled harms nobody: what was not taken yet is never written, what was taken goes on and its answer is thrown away.
    """

    def __init__(
        self,
        write: Write[Item, Result],
        key: Callable[[Item], Hashable],
        *,
        order: Callable[[Item], Any] | None = None,
        max_batch: int = 500,
        weight: Callable[[Item], int] | None = None,
        max_weight: int = 0,
        max_waiting: int = 20_000,
        max_waiting_weight: int | None = None,
        max_in_flight: int = 2,
        retryable: Callable[[Exception], bool] = spoiled_by_an_item,
    ) -> None:
        """
        `write` answers in the order of its items; a BridgeError among the answers is that item's own refusal. It is atomic: when it
        raises, nothing was written, or the failure is one that `retryable` denies.
        `order` sorts each batch, so that two processes lock rows in one order; None keeps the order of arrival.
        `max_batch`: beyond 500 rows a statement gains little and makes everyone behind it wait (it is the Batch RPCs' bound, too).
        `weight` and `max_weight` bound a batch in bytes, too; an item that is heavier goes alone.
        `max_waiting`: items not taken yet. 20,000 are about one second of the best rate measured for whole commits on two cores:
        a longer queue only turns overload into missed deadlines.
        `max_waiting_weight` bounds those by weight, too; one alone is always taken.
        `max_in_flight`: batches at once. One goes out whatever it holds, a further one only when it is full and has nothing left
        to gather: so the database has its next statement while this process still works on the answers of the last.
        `retryable` says of a failure whether the batch is tried again in halves; otherwise it goes to every caller of the batch.
        """
        self._write = write
        self._key = key
        self._order = order
        self._max_batch = max_batch
        self._weight = weight
        self._max_weight = max_weight
        self._max_waiting = max_waiting
        self._max_waiting_weight = max_waiting_weight
        self._max_in_flight = max_in_flight
        self._retryable = retryable
        self._waiting = 0
        self._waiting_weight = 0
        # The first entry of each key of which none is in flight, in the order of the keys' turns.
        self._ready: OrderedDict[Hashable, _Entry[Item, Result]] = OrderedDict()
        self._ready_weight = 0
        # The last entry of each key that waits or is in flight.
        self._tails: dict[Hashable, _Entry[Item, Result]] = {}
        self._workers: set[asyncio.Task[None]] = set()
        self._starting = False
        self._closed = False

    async def submit(self, item: Item) -> Result:
        """Write one item and return its answer.

        Raises the item's own refusal or its batch's failure, QueueFull, or Stopped after `aclose`.
        """
        call = _Call(1)
        entry = self._entry(item, call)
        await self._pass((entry,), call)
        outcome = entry.outcome
        if isinstance(outcome, BridgeError):
            # A whole batch may share it, and each caller that raises it would lengthen the trace of the next.
            raise outcome.with_traceback(None)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def submit_many(self, items: Iterable[Item]) -> list[Result | Exception]:
        """Write many items and return their answers in order, an item's failure in its place.

        A failure is a BridgeError, or any other exception where the write has a bug. Raises QueueFull if there is no room for all
        of them, or Stopped after `aclose`; then none was written.
        """
        call = _Call(0)
        entries = [self._entry(item, call) for item in items]
        if entries:
            call.pending = len(entries)
            await self._pass(entries, call)
        return [entry.outcome for entry in entries]

    async def aclose(self) -> None:
        """Take no more items, and return when those that were taken in have their answers."""
        self._closed = True
        while self._workers:
            await asyncio.wait(self._workers)

    def _entry(self, item: Item, call: _Call) -> _Entry[Item, Result]:
        return _Entry(item, self._key(item), self._weight(item) if self._weight else 0, call)

    async def _pass(self, entries: Sequence[_Entry[Item, Result]], call: _Call) -> None:
        if self._closed:
            raise Stopped
        if self._waiting + len(entries) > self._max_waiting:
            raise QueueFull(metadata={"limit": str(self._max_waiting)})
        weight, most = sum(entry.weight for entry in entries), self._max_waiting_weight
        if most is not None and self._waiting_weight and self._waiting_weight + weight > most:
            raise QueueFull(metadata={"limit_bytes": str(most)})
        self._waiting_weight += weight
        self._enqueue(entries)
        self._wake()
        try:
            await call.done
        except asyncio.CancelledError:
            for entry in entries:
                if not entry.taken:
                    self._unlink(entry)
            raise

    def _enqueue(self, entries: Sequence[_Entry[Item, Result]]) -> None:
        tails = self._tails
        for entry in entries:
            tail = tails.get(entry.key)
            if tail is None:
                self._make_ready(entry)
            else:
                tail.behind = entry
                entry.before = tail
            tails[entry.key] = entry
        self._waiting += len(entries)

    def _make_ready(self, entry: _Entry[Item, Result]) -> None:
        self._ready[entry.key] = entry
        self._ready_weight += entry.weight

    def _unlink(self, entry: _Entry[Item, Result]) -> None:
        before, behind = entry.before, entry.behind
        self._waiting -= 1
        self._waiting_weight -= entry.weight
        if behind is not None:
            behind.before = before
        elif before is not None:
            self._tails[entry.key] = before
        else:
            del self._tails[entry.key]
        if before is not None:
            before.behind = behind
            return
        self._ready_weight -= entry.weight
        if behind is not None:
            # In its place: the key keeps its turn.
            self._make_ready(behind)
        else:
            del self._ready[entry.key]

    def _wake(self) -> None:
        """Start a worker if one may help; it begins on the loop's next turn, so callers woken in the same turn share a batch."""
        if self._has_batch(len(self._workers)) and not self._starting and len(self._workers) < self._max_in_flight:
            self._starting = True
            # A batch belongs to nobody: the first caller's correlation id and deadline must not colour it.
            self._workers.add(asyncio.get_running_loop().create_task(self._work(), context=contextvars.Context()))

    def _has_batch(self, others: int) -> bool:
        """Whether a batch is worth writing while `others` are in flight."""
        if not others:
            return bool(self._ready)
        return len(self._ready) >= self._max_batch or self._ready_weight > self._max_weight

    async def _work(self) -> None:
        self._starting = False
        try:
            while self._has_batch(len(self._workers) - 1):
                batch = self._take()
                self._wake()
                await self._write_in_parts(batch)
        finally:
            self._workers.discard(cast("asyncio.Task[None]", asyncio.current_task()))
            # Something is left only where this worker was cancelled: its callers have their answer, the rest goes on.
            self._wake()

    def _take(self) -> list[_Entry[Item, Result]]:
        ready = self._ready
        batch = [ready.popitem(last=False)[1] for _ in range(self._size_of_batch())]
        for entry in batch:
            entry.taken = True
            self._ready_weight -= entry.weight
            self._waiting_weight -= entry.weight
        self._waiting -= len(batch)
        return batch

    def _size_of_batch(self) -> int:
        most = min(len(self._ready), self._max_batch)
        if self._ready_weight <= self._max_weight:
            return most
        total = 0
        for size, entry in enumerate(islice(self._ready.values(), most)):
            total += entry.weight
            if size and total > self._max_weight:
                return size
        return most

    async def _write_in_parts(self, batch: list[_Entry[Item, Result]]) -> None:
        """Write the batch whole, or in ever smaller halves where it fails, until each of its entries has an outcome."""
        parts = [batch]
        while parts:
            part = parts.pop()
            try:
                outcomes = await self._attempt(part)
            except asyncio.CancelledError:
                for unwritten in (part, *parts):
                    self._settle(unwritten, [Stopped()] * len(unwritten))
                raise
            except Exception as failure:
                if len(part) > 1 and self._retryable(failure):
                    middle = len(part) // 2
                    parts += (part[middle:], part[:middle])
                    continue
                outcomes = [failure] * len(part)
            self._settle(part, outcomes)

    async def _attempt(self, part: list[_Entry[Item, Result]]) -> Sequence[Result | Exception]:
        order = self._order
        if order is not None:
            part.sort(key=lambda entry: order(entry.item))
        outcomes = await self._write([entry.item for entry in part])
        if len(outcomes) != len(part):
            # Not raised: it is written, and a retry in halves would write it again.
            return [RuntimeError(f"the write answered {len(outcomes)} of {len(part)} items")] * len(part)
        return outcomes

    def _settle(self, batch: Sequence[_Entry[Item, Result]], outcomes: Sequence[Result | Exception]) -> None:
        """Give each entry its outcome, end the wait of the callers that have all of theirs, and give the keys their next turn."""
        for entry, outcome in zip(batch, outcomes, strict=True):
            entry.outcome = outcome
            call = entry.call
            call.pending -= 1
            if not call.pending and not call.done.done():
                call.done.set_result(None)
            behind = entry.behind
            if behind is None:
                del self._tails[entry.key]
            else:
                entry.behind = behind.before = None
                self._make_ready(behind)
