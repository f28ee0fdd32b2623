"""What writers asked of the store and what it answered, and how long nobody was answered. checker.py judges it."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from hashlib import sha256
from json import dumps, loads
from typing import Any, NamedTuple

from services.chassis.identity import event_id


class Outcome(Enum):
    """What a caller knows of a commit that it sent."""

    COMMITTED = "committed"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"
    FENCED = "fenced"
    REFUSED = "refused"
    """An error that says that nothing was written, or another item of an atomic batch that was not committed."""
    UNKNOWN = "unknown"
    """It may have been committed, and may yet be."""


class Place(NamedTuple):
    """Where a commit stands."""

    version: int
    partition: int
    offset: int


class Known(NamedTuple):
    """One action that a Duplicate names."""

    action_id: str
    place: Place
    event_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One sending of a change, and its answer."""

    expected: int | None
    """The version that it expected; None for any."""
    outcome: Outcome
    place: Place | None = None
    """Of COMMITTED."""
    known: tuple[Known, ...] = ()
    """Of DUPLICATE."""
    current: tuple[int, str | None] | None = None
    """Of CONFLICT: the version and state that it carried."""


@dataclass(slots=True)
class Change:
    """Actions that are committed together, and every attempt to do so, in the order of their answers."""

    key: str
    action_ids: tuple[str, ...]
    event_counts: tuple[int, ...]
    """Events of each action."""
    blind: bool = False
    """True for one that is committed on whatever is there: its state is made of itself alone."""
    epoch: int | None = None
    """Of the lease that guards it."""
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def settled(self) -> bool:
        """Whether the store said where it stands."""
        return any(attempt.outcome in (Outcome.COMMITTED, Outcome.DUPLICATE) for attempt in self.attempts)

    def event_ids(self, index: int) -> tuple[str, ...]:
        """The ids of the events of one of its actions."""
        action_id = uuid.UUID(self.action_ids[index])
        return tuple(str(event_id(action_id, number)) for number in range(self.event_counts[index]))

    def fold(self, state: str | None) -> str:
        """The state that it makes of the one before, so that a lost or doubled change shows in every state after it."""
        before: dict[str, Any] = {"count": 0, "chain": ""} if state is None or self.blind else loads(state)
        chain = sha256("/".join((before["chain"], *self.action_ids)).encode()).hexdigest()
        return dumps({"count": before["count"] + len(self.action_ids), "chain": chain})


class History:
    """All changes of a run."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.changes: list[Change] = []
        self.bugs: list[str] = []
        """Answers that no node may give, such as INTERNAL."""
        self.outcomes: Counter[Outcome] = Counter()
        """Answers, one for each change and attempt."""
        self.resolved = 0
        """Changes of an unknown outcome that have an answer now."""
        self.replays = 0
        """Acknowledged changes that were sent again on purpose."""
        self.reads = 0
        """Projections that were asked for with the version of an acknowledged commit."""
        self.longest_silence = 0.0
        """Seconds in which no commit was acknowledged."""
        self._clock = clock
        self._acknowledged_at = clock()
        self._answered = asyncio.Event()

    @property
    def acknowledged(self) -> int:
        """Commits that the store said are there."""
        return self.outcomes[Outcome.COMMITTED]

    def add(self, change: Change) -> Change:
        """The change, recorded before it is first sent."""
        self.changes.append(change)
        return change

    def answer(self, change: Change, attempt: Attempt) -> None:
        """Records what an attempt was answered."""
        if attempt.outcome in (Outcome.COMMITTED, Outcome.DUPLICATE) and not change.settled:
            self.resolved += any(earlier.outcome is Outcome.UNKNOWN for earlier in change.attempts)
        change.attempts.append(attempt)
        self.outcomes[attempt.outcome] += 1
        if attempt.outcome is Outcome.COMMITTED:
            now = self._clock()
            self.longest_silence = max(self.longest_silence, now - self._acknowledged_at)
            self._acknowledged_at = now
        self._wake()

    async def more(self, outcome: Outcome, count: int) -> None:
        """Returns when `count` more attempts had this outcome."""
        wanted = self.outcomes[outcome] + count
        while self.outcomes[outcome] < wanted:
            await self._answered.wait()

    def _wake(self) -> None:
        # A new one for whoever waits next: each waiter looks at the figures once for each answer.
        answered, self._answered = self._answered, asyncio.Event()
        answered.set()


def new_change(
    key: str,
    event_counts: Sequence[int],
    new_id: Callable[[], uuid.UUID],
    *,
    blind: bool = False,
    epoch: int | None = None,
) -> Change:
    """A change with an action for each count of events."""
    return Change(key, tuple(str(new_id()) for _ in event_counts), tuple(event_counts), blind, epoch)
