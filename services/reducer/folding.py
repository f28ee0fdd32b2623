"""Folds the actions that wait for a key into one commit, again and again until each has its outcome.

How they wait is mailbox.py's, how the store is called store.py's, whose turn a key is turn.py's, what a fold is the reducers'.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, NamedTuple, TypeAlias

from prometheus_client import CollectorRegistry, Counter, Histogram
from pydantic import BaseModel, ConfigDict, Field

from omninode.bridge.store.v1 import store_pb2
from services.chassis.errors import (
    AlreadyExists,
    BridgeError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from services.chassis.settings import SharedVariable
from services.reducer.cache import StateCache
from services.reducer.domain import ABSENT, Action, Current, Fold, Reducers
from services.reducer.mailbox import Letter, Mailboxes
from services.reducer.store import Commit, Store, question
from services.reducer.turn import Turns

_log = logging.getLogger(__name__)

GAVE_UP_TYPE = "ReducerGaveUp"
GAVE_UP_TOPIC = "workflow"
_MEETINGS = 2
"""Conflicts that may be chance: after the first a fold is made anew at once, after the second the key's turn is waited for."""
_STREAK = 16
"""Commits in a row on a key, after which a process asks whose turn it is: who comes first each time notices nothing of those that
he comes before. More than a workflow has."""
_AT_FAULT = (InvalidArgument, NotFound, AlreadyExists, FailedPrecondition)
"""What the store refuses an action with; every other kind says something of the store, not of the action."""


class FoldingSettings(BaseModel):
    """How actions are gathered, and how often a fold is tried. Times in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    commit_actions: int = Field(500, gt=0, le=500)
    """Actions of one commit: what the store takes."""
    commit_bytes: int = Field(1024 * 1024, gt=0)
    """Payloads and blobs that gather in one commit; a larger action goes alone. Events and states repeat what payloads say, so the
    commit is a few times as large, and a message holds 16 MiB."""
    waiting_actions: int = Field(20_000, gt=0)
    """Actions that have no outcome yet; some seconds of work. A longer queue only turns overload into missed deadlines."""
    waiting_bytes: int = Field(128 * 1024 * 1024, gt=0)
    """Payloads and blobs of these, for the node's memory has other uses."""
    attempts: Annotated[int, SharedVariable("REDUCER_MAX_RETRIES")] = Field(64, gt=0)
    """Conflicts after which a fold is given up, beyond the two after which it waits for the key's turn. A replica may commit 16
    times before it notices the turn of another: fewer conflicts say little."""
    backoff_initial: Annotated[float, SharedVariable("REDUCER_INITIAL_BACKOFF_MS", 0.001)] = Field(0.010, gt=0)
    """The least wait between two questions for a key's turn: some commits' time."""
    backoff_max: Annotated[float, SharedVariable("REDUCER_MAX_BACKOFF_MS", 0.001)] = Field(0.050, gt=0)
    """The longest: a key rests no longer between two turns."""
    cache_entries: int = Field(10_000, ge=0)
    """Keys whose state is kept after a commit: some seconds' worth at the best rate, in which a workflow's next action comes."""
    cache_characters: int = Field(32 * 1024 * 1024, ge=0)
    """Text of the states that are kept; parsed they take about five times as much memory."""
    turn_ttl: float = Field(2.0, ge=0.1, le=3600)
    """When the turn of a replica that was killed ends: some times the longest turn, so that it cuts none short."""
    turn_longest: float = Field(0.1, gt=0)
    """The longest turn: some tens of commits, for which a caller of another replica can wait."""
    turn_idle: float = Field(0.010, ge=0)
    """A turn ends after that long without an action: callers send their next sooner."""


class FoldingMetrics:
    """What became of actions, over all keys."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.successful = Counter("reducer_successful_actions", "Actions that took effect.", registry=registry)
        self.failed = Counter(
            "reducer_failed_actions", "Actions that were refused, fenced, given up or not committed.", registry=registry
        )
        self.gave_up = Counter(
            "reducer_gaveup", "Actions given up because other writers came first each time.", registry=registry
        )
        self.conflicts = Counter(
            "conflict_attempts", "Commits that came after another writer's, stale guesses aside.", registry=registry
        )
        self.backoff = Histogram(
            "reducer_backoff_ms",
            "Waits for a key's turn, in milliseconds.",
            buckets=(10, 15, 20, 25, 30, 40, 50, 100, 250),
            registry=registry,
        )


class Folded(NamedTuple):
    """An action that took effect, or in a dry run would."""

    action: Action
    version: int
    fold: Fold
    commit: store_pb2.Committed | None
    """None in a dry run."""


class GaveUp(NamedTuple):
    """An action that took no effect because other writers came first."""

    attempt_count: int
    actual_version: int


Outcome: TypeAlias = Folded | store_pb2.KnownAction | store_pb2.Fenced | GaveUp
_Letter: TypeAlias = Letter[Outcome]
_Refused: TypeAlias = Sequence[tuple[_Letter, Exception]]


class _Step(NamedTuple):
    """A folded action, and the version of the reducer that folded it."""

    letter: _Letter
    fold: Fold
    version: int


class Folder:
    """Folds actions and commits what comes of it.

    Guarantees: an action takes effect once. One that other writers come before is folded anew, at once on the state that the first
    conflict carried, after the second when it is the key's turn in this process; it is given up only where a writer that takes no
    turns comes first again and again.

    `owner` is another for every start of a process; `draw` gives random numbers in [0, 1), `sleep` waits for seconds.
    """

    def __init__(
        self,
        reducers: Reducers,
        store: Store,
        settings: FoldingSettings,
        metrics: FoldingMetrics,
        *,
        owner: str,
        draw: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._reducers = reducers
        self._store = store
        self._settings = settings
        self._metrics = metrics
        self._turns = Turns(
            store,
            owner=owner,
            ttl=settings.turn_ttl,
            longest=settings.turn_longest,
            idle=settings.turn_idle,
            backoff=(settings.backoff_initial, settings.backoff_max),
            waits=metrics.backoff,
            draw=draw,
            sleep=sleep,
        )
        self._cache = StateCache(settings.cache_entries, settings.cache_characters)
        self._mailboxes: Mailboxes[Outcome] = Mailboxes(
            self._settle,
            max_actions=settings.commit_actions,
            max_bytes=settings.commit_bytes,
            max_waiting=settings.waiting_actions,
            max_waiting_bytes=settings.waiting_bytes,
        )

    async def fold(self, actions: Sequence[Action]) -> list[Outcome | Exception]:
        """What became of the actions, in order; a failure is a BridgeError, or any other exception where there is a bug.

        Those of one key take effect in order. Raises QueueFull where there is no room for all of them, Stopped after `aclose`.
        """
        return await self._mailboxes.send(actions)

    async def dry_run(self, action: Action) -> Folded:
        """What would become of the action. Raises IllegalTransition, InvalidArgument."""
        current = await self._store.get(action.key)
        fold = self._reducers.of(action.reducer, current).fold(current.state, action)
        return Folded(action, current.version + 1, fold, None)

    async def aclose(self) -> None:
        """Takes no more actions, and returns when those that were taken in have their outcomes."""
        await self._mailboxes.aclose()
        await self._turns.aclose()

    async def _settle(self, letters: Sequence[_Letter]) -> None:
        key = letters[0].action.key
        self._turns.begin(key)
        try:
            await self._fold(letters)
        except Exception as failure:
            # A bug, too: each sender raises it where the interceptor logs it.
            for letter in letters:
                self._fail(letter, failure)
        finally:
            self._turns.end(key)

    async def _fold(self, letters: Sequence[_Letter]) -> None:
        """Ends letters of one key, one reducer and equal guards."""
        pending = list(letters)
        first = pending[0].action
        guess = await self._guess(first)
        current = guess or await self._store.get(first.key)
        conflicts = 0
        while pending:
            steps, refused = _folded(self._reducers, current, pending)
            try:
                answer = await self._store.try_commit(_commit(current, steps) if steps else _question(pending))
            except _AT_FAULT as failure:
                await self._fold_apart(pending, failure)
                return
            match answer:
                case store_pb2.Committed():
                    self._accept(steps, answer, current.streak + 1)
                    await self._refuse(refused)
                    return
                case store_pb2.Fenced():
                    self._fence(pending, answer)
                    return
                case store_pb2.Duplicate():
                    pending = self._acknowledge(pending, answer)
                case store_pb2.Conflict():
                    actual = await self._store.actual(answer)
                    if not steps and actual.version == current.version:
                        self._fail_each(refused)
                        return
                    # A guess that was stale is no sign of another writer now; it happens once.
                    if current is not guess:
                        conflicts += 1
                        self._metrics.conflicts.inc()
                        if conflicts == _MEETINGS + self._settings.attempts:
                            await self._give_up(pending, GaveUp(conflicts, actual.version))
                            return
                        if conflicts >= _MEETINGS and not self._turns.has(first.key):
                            await self._turns.take(first.key)
                            actual = await self._store.get(first.key)
                    current = actual

    async def _guess(self, action: Action) -> Current | None:
        """What the action's key is likely to be; None where that is to be asked of the store."""
        # Taken out of the cache: what is committed on it comes back.
        cached = self._cache.take(action.key)
        if cached is None:
            return ABSENT if self._reducers.get(action.reducer).opens(action.type) else None
        if cached.streak < _STREAK or self._turns.has(action.key):
            return cached
        if await self._turns.is_anothers(action.key):
            await self._turns.take(action.key)
            return None
        return cached._replace(streak=0)

    async def _fold_apart(self, letters: Sequence[_Letter], failure: BridgeError) -> None:
        """Ends letters of which the store refused some action: that one alone is to be refused."""
        if len(letters) == 1:
            self._fail(letters[0], failure)
            return
        middle = len(letters) // 2
        for part in (letters[:middle], letters[middle:]):
            await self._fold(part)

    async def _refuse(self, refused: _Refused) -> None:
        """Ends letters whose actions the key's state, now confirmed, did not allow; a known action is a duplicate all the same."""
        if not refused:
            return
        letters = [letter for letter, _ in refused]
        try:
            answer = await self._store.try_commit(_question(letters))
        except _AT_FAULT as failure:
            if len(refused) == 1:
                self._fail(letters[0], failure)
                return
            middle = len(refused) // 2
            await self._refuse(refused[:middle])
            await self._refuse(refused[middle:])
            return
        match answer:
            case store_pb2.Fenced():
                self._fence(letters, answer)
            case store_pb2.Duplicate():
                self._acknowledge(letters, answer)
        self._fail_each(refused)

    def _accept(self, steps: Sequence[_Step], committed: store_pb2.Committed, streak: int) -> None:
        """Ends the letters of a commit, and keeps the state that it made."""
        last_letter, last, version = steps[-1]
        if not last.final:
            current = Current(committed.version, last.state, len(last.state_json), version, streak)
            self._cache.put(last_letter.action.key, current)
        self._metrics.successful.inc(len(steps))
        for letter, fold, _ in steps:
            letter.end(Folded(letter.action, committed.version, fold, committed))

    def _acknowledge(self, letters: Sequence[_Letter], duplicate: store_pb2.Duplicate) -> list[_Letter]:
        """Ends the letters whose actions are known; the others."""
        known = {action.action_id: action for action in duplicate.known}
        others = []
        for letter in letters:
            first = known.get(str(letter.action.action_id))
            if first is None:
                others.append(letter)
            else:
                letter.end(first)
        return others

    def _fence(self, letters: Sequence[_Letter], fenced: store_pb2.Fenced) -> None:
        self._metrics.failed.inc(len(letters))
        for letter in letters:
            letter.end(fenced)

    def _fail(self, letter: _Letter, failure: Exception) -> None:
        if not letter.outcome.done():
            self._metrics.failed.inc()
            letter.end(failure)

    def _fail_each(self, refused: _Refused) -> None:
        for letter, refusal in refused:
            self._fail(letter, refusal)

    async def _give_up(self, letters: Sequence[_Letter], outcome: GaveUp) -> None:
        self._metrics.gave_up.inc(len(letters))
        self._metrics.failed.inc(len(letters))
        first = letters[0].action
        # A later try of the same action gives up on a later version, so that its event is another.
        request_id = f"{first.action_id}/gave_up/{outcome.actual_version}"
        try:
            await self._store.append(request_id, [_gave_up_event(letter.action, outcome) for letter in letters])
        except BridgeError as error:
            details = {"key": first.key, "reason": error.reason_name}
            _log.warning("event of an action given up is lost", extra=details)
        for letter in letters:
            letter.end(outcome)


def _folded(
    reducers: Reducers, current: Current, letters: Sequence[_Letter]
) -> tuple[list[_Step], list[tuple[_Letter, Exception]]]:
    """The letters' actions folded one after another, and those that the state did not allow at their turn."""
    steps: list[_Step] = []
    refused: list[tuple[_Letter, Exception]] = []
    try:
        reducer = reducers.of(letters[0].action.reducer, current)
    except BridgeError as refusal:
        return [], [(letter, refusal) for letter in letters]
    state = current.state
    for letter in letters:
        try:
            fold = reducer.fold(state, letter.action)
        except Exception as refusal:
            # A bug of the reducer, too: it harms no other action.
            refused.append((letter, refusal))
        else:
            state = fold.state
            steps.append(_Step(letter, fold, reducer.version))
    return steps, refused


def _commit(current: Current, steps: Sequence[_Step]) -> Commit:
    letter, last, version = steps[-1]
    return Commit(
        key=letter.action.key,
        expected=current.version,
        state_json=last.state_json,
        schema_version=version,
        actions=[(step.letter.action, step.fold.events) for step in steps],
        projection=last.projection,
        final=last.final,
    )


def _question(letters: Sequence[_Letter]) -> Commit:
    return question([letter.action for letter in letters])


def _gave_up_event(action: Action, outcome: GaveUp) -> store_pb2.Event:
    payload = {
        "action_id": str(action.action_id),
        "actual_version": outcome.actual_version,
        "attempt_count": outcome.attempt_count,
        "key": action.key,
        "reducer": action.reducer,
        "type": action.type,
    }
    return store_pb2.Event(
        kind=store_pb2.EVENT_KIND_EVENT,
        event_type=GAVE_UP_TYPE,
        topic=GAVE_UP_TOPIC,
        partition_key=action.key,
        payload_json=json.dumps(payload),
    )
