"""A mailbox for each key: actions that wait for the same key are taken out together, while those behind them gather.

What becomes of them is the owner's `settle`; nothing here folds or calls.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

from services.chassis.coalesce import QueueFull, Stopped
from services.reducer.domain import BLOB_COUNT, BLOB_REF_COUNT, Action

Outcome = TypeVar("Outcome")


class Letter(Generic[Outcome]):
    """An action that waits for its outcome."""

    __slots__ = ("action", "outcome", "size")

    def __init__(self, action: Action) -> None:
        self.action = action
        self.size = action.size
        self.outcome: asyncio.Future[Outcome | Exception] = asyncio.get_running_loop().create_future()
        """A failure is a result like any other: many letters may share one. It is cancelled where the sender leaves."""

    def end(self, outcome: Outcome | Exception) -> None:
        """Gives it its outcome, unless it has one."""
        if not self.outcome.done():
            self.outcome.set_result(outcome)


class _Load:
    """What actions taken out together hold so far: one commit's worth."""

    def __init__(self, letter: Letter[Any]) -> None:
        self._first = first = letter.action
        self._ids = {first.action_id}
        self._bytes = letter.size
        self._blobs = len(first.blobs)
        self._blob_refs = len(first.blob_refs)

    def takes(self, letter: Letter[Any], max_bytes: int) -> bool:
        """Adds a letter, or says that it must wait: for its guards, for its twin's outcome, or for want of room."""
        first, action = self._first, letter.action
        if action.reducer != first.reducer or action.guards != first.guards or action.action_id in self._ids:
            return False
        self._bytes += letter.size
        self._blobs += len(action.blobs)
        self._blob_refs += len(action.blob_refs)
        self._ids.add(action.action_id)
        return self._bytes <= max_bytes and self._blobs <= BLOB_COUNT and self._blob_refs <= BLOB_REF_COUNT


class Mailboxes(Generic[Outcome]):
    """The mailboxes of one node.

    Guarantees: the actions of a key are settled in the order of their arrival, one group at a time; a group has one reducer,
    equal guards, and no action_id twice. A key's mailbox is gone when it is empty. A sender that is cancelled harms nobody: what
    was not taken out yet never is, what was goes on.
    """

    def __init__(
        self,
        settle: Callable[[Sequence[Letter[Outcome]]], Awaitable[None]],
        *,
        max_actions: int,
        max_bytes: int,
        max_waiting: int,
        max_waiting_bytes: int,
    ) -> None:
        """`settle` ends every letter of a group, and raises nothing.

        At most `max_actions` of `max_bytes` in all are a group; at most `max_waiting` of `max_waiting_bytes` in all wait for it.
        """
        self._settle = settle
        self._max_actions = max_actions
        self._max_bytes = max_bytes
        self._max_waiting = max_waiting
        self._max_waiting_bytes = max_waiting_bytes
        self._by_key: dict[str, deque[Letter[Outcome]]] = {}
        self._workers: set[asyncio.Task[None]] = set()
        self._waiting = 0
        self._waiting_bytes = 0
        self._closed = False

    async def send(self, actions: Sequence[Action]) -> list[Outcome | Exception]:
        """The outcomes of the actions, in order. Raises QueueFull if there is no room for all of them, Stopped after `aclose`."""
        if self._closed:
            raise Stopped
        letters: list[Letter[Outcome]] = [Letter(action) for action in actions]
        size = sum(letter.size for letter in letters)
        if self._waiting + len(actions) > self._max_waiting:
            raise QueueFull(metadata={"limit": str(self._max_waiting)})
        if self._waiting and self._waiting_bytes + size > self._max_waiting_bytes:
            raise QueueFull(metadata={"limit_bytes": str(self._max_waiting_bytes)})
        self._waiting += len(actions)
        self._waiting_bytes += size
        for letter in letters:
            self._post(letter)
        try:
            return [await letter.outcome for letter in letters]
        except asyncio.CancelledError:
            for letter in letters:
                letter.outcome.cancel()
            raise

    async def aclose(self) -> None:
        """Takes no more actions, and returns when those that were taken in have their outcomes."""
        self._closed = True
        while self._workers:
            await asyncio.wait(self._workers)

    def _post(self, letter: Letter[Outcome]) -> None:
        key = letter.action.key
        mailbox = self._by_key.get(key)
        if mailbox is None:
            mailbox = self._by_key[key] = deque()
            # A group belongs to nobody: the first sender's correlation id and deadline must not colour it.
            work = self._work(key, mailbox)
            worker = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)
        mailbox.append(letter)

    async def _work(self, key: str, mailbox: deque[Letter[Outcome]]) -> None:
        group: list[Letter[Outcome]] = []
        try:
            while group := self._take(mailbox):
                await self._settle(group)
                # Not when it is taken out, nor when its senders leave: until here it takes memory.
                self._count_out(group)
        finally:
            del self._by_key[key]
            # Some are left only where this worker was cancelled.
            left = (*group, *mailbox)
            self._count_out(left)
            for letter in left:
                letter.end(Stopped())

    def _take(self, mailbox: deque[Letter[Outcome]]) -> list[Letter[Outcome]]:
        group: list[Letter[Outcome]] = []
        load: _Load | None = None
        while mailbox and len(group) < self._max_actions:
            letter = mailbox[0]
            if not letter.outcome.done():
                if load is None:
                    load = _Load(letter)
                elif not load.takes(letter, self._max_bytes):
                    break
                group.append(letter)
            else:
                self._count_out([letter])
            mailbox.popleft()
        return group

    def _count_out(self, letters: Sequence[Letter[Outcome]]) -> None:
        self._waiting -= len(letters)
        self._waiting_bytes -= sum(letter.size for letter in letters)
