"""Turns on the keys that replicas met on: who has a key's lease folds on it for a while, the others wait for theirs.

The lease keeps nobody from committing, for a commit that expects a version needs no lock: it only spares the replicas that know of
one another their conflicts. What is folded meanwhile is folding.py's.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from blake3 import blake3
from prometheus_client import Histogram

from services.chassis.errors import BridgeError
from services.reducer.domain import decorrelated_jitter
from services.reducer.store import Store

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Turn:
    epoch: int
    end: float
    """By the loop's clock."""
    timer: asyncio.TimerHandle | None = None


class Turns:
    """The turns of one process. At most one task at a time is to ask for a key."""

    def __init__(
        self,
        store: Store,
        *,
        owner: str,
        ttl: float,
        longest: float,
        idle: float,
        backoff: tuple[float, float],
        waits: Histogram,
        draw: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        """Times in seconds. `owner` is another for every start of a process.

        A turn ends `ttl` after its owner was killed, after `longest` however much there is to fold, or after `idle` without any;
        `backoff` are the least and the longest wait between two questions for one, which `waits` observes in milliseconds.
        """
        self._store = store
        self._owner = owner
        self._ttl = ttl
        self._longest = longest
        self._idle = idle
        self._backoff = backoff
        self._waits = waits
        self._draw = draw
        self._sleep = sleep
        self._by_key: dict[str, _Turn] = {}
        self._releases: dict[str, asyncio.Task[None]] = {}

    def begin(self, key: str) -> None:
        """Folding on the key begins: a turn that there is does not end for idleness."""
        turn = self._by_key.get(key)
        if turn is not None and turn.timer is not None:
            turn.timer.cancel()
            turn.timer = None

    def end(self, key: str) -> None:
        """Folding on the key has ended for now: its turn, if there is one, ends too where it took long enough, or soon."""
        turn = self._by_key.get(key)
        if turn is None:
            return
        loop = asyncio.get_running_loop()
        left = min(self._idle, turn.end - loop.time())
        if left <= 0:
            self._hand_over(key)
        else:
            turn.timer = loop.call_later(left, self._hand_over, key)

    def has(self, key: str) -> bool:
        """Whether the key's turn is this process'."""
        return key in self._by_key

    async def is_anothers(self, key: str) -> bool:
        """Whether the key's turn is another process'. Raises what the store refuses with."""
        return await self._store.holder(lease_name(key)) not in (None, self._owner)

    async def take(self, key: str) -> None:
        """Waits for the key's turn; without it where it does not come within a lease's time. Raises what the store refuses with."""
        if key in self._releases:
            # It would release what is taken here: both have the same owner.
            await asyncio.wait([self._releases[key]])
        loop = asyncio.get_running_loop()
        patience, delay = self._ttl, 0.0
        while True:
            epoch = await self._store.acquire(lease_name(key), self._owner, self._ttl)
            if epoch is not None:
                self._by_key[key] = _Turn(epoch, loop.time() + self._longest)
                return
            if patience <= 0:
                return
            delay = decorrelated_jitter(delay, *self._backoff, self._draw())
            self._waits.observe(delay * 1000)
            await self._sleep(delay)
            patience -= delay

    async def aclose(self) -> None:
        """Ends every turn, and returns when their leases are released."""
        for key in list(self._by_key):
            self._hand_over(key)
        if self._releases:
            await asyncio.wait(self._releases.values())

    def _hand_over(self, key: str) -> None:
        turn = self._by_key.pop(key)
        if turn.timer is not None:
            turn.timer.cancel()
        # It belongs to nobody: the deadline of the call in which it begins must not end it.
        work = self._release(key, turn.epoch)
        self._releases[key] = asyncio.get_running_loop().create_task(work, context=contextvars.Context())

    async def _release(self, key: str, epoch: int) -> None:
        try:
            await self._store.release(lease_name(key), self._owner, epoch)
        except BridgeError as error:
            # It ends by itself.
            _log.warning("lease of a key not released", extra={"key": key, "reason": error.reason_name})
        finally:
            del self._releases[key]


def lease_name(key: str) -> str:
    """The lease that is a key's turn: a key may hold characters that a lease's name may not."""
    return f"turn/{blake3(key.encode()).hexdigest()}"
