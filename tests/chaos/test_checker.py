"""The checker finds each kind of violation, one by one, in a run that is faultless but for it."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import TypeAlias

import pytest

from tests.chaos.checker import (
    Database,
    Kind,
    LogRow,
    Shown,
    StateRow,
    Violation,
    check_database,
    check_line,
    check_projections,
    commits_of,
    outbox_of,
)
from tests.chaos.history import Attempt, Change, Known, Outcome, Place, new_change

RED, BLUE = "chaos/red", "chaos/blue"


@dataclass
class Told:
    """What a run of three commits of RED and one of BLUE, all of one partition, left behind."""

    changes: list[Change]
    log: list[LogRow]
    states: dict[str, StateRow]
    next_offsets: dict[int, int]

    def found(self) -> set[Kind]:
        return kinds(check_database(self.changes, self.database))

    @property
    def database(self) -> Database:
        return Database(self.log, self.states, self.next_offsets)

    def answer(self, change: int, attempt: Attempt) -> None:
        self.changes[change].attempts.append(attempt)


def kinds(violations: list[Violation]) -> set[Kind]:
    return {violation.kind for violation in violations}


@pytest.fixture
def told() -> Told:
    random = Random(0)

    def new_id() -> uuid.UUID:
        return uuid.UUID(int=random.getrandbits(128), version=4)

    changes = [
        new_change(RED, [1], new_id, epoch=1),
        new_change(BLUE, [2, 0], new_id),
        new_change(RED, [0], new_id, epoch=2),
        new_change(RED, [1, 1], new_id, epoch=2),
    ]
    told = Told(changes, [], {}, {0: len(changes)})
    for offset, change in enumerate(changes):
        before = told.states.get(change.key)
        version, state = (before.version, before.state) if before else (0, None)
        place = Place(version + 1, 0, offset)
        folded = change.fold(state)
        change.attempts.append(Attempt(version, Outcome.COMMITTED, place))
        told.states[change.key] = StateRow(version + 1, folded)
        told.log += [
            LogRow(0, offset, position, action_id, change.key, version + 1, None if position else folded)
            for position, action_id in enumerate(change.action_ids)
        ]
    return told


def place_of(told: Told, change: int) -> Place:
    place = told.changes[change].attempts[0].place
    assert place is not None
    return place


def duplicate_of(told: Told, change: int) -> Attempt:
    """What a replay of the change is to be answered."""
    of = told.changes[change]
    known = tuple(
        Known(action_id, place_of(told, change), of.event_ids(index)) for index, action_id in enumerate(of.action_ids)
    )
    return Attempt(None, Outcome.DUPLICATE, known=known)


def test_a_faultless_run_has_no_violation(told: Told) -> None:
    told.answer(0, duplicate_of(told, 0))
    told.answer(1, duplicate_of(told, 1))
    assert told.found() == set()


def test_an_unknown_outcome_may_have_been_committed_or_not(told: Told) -> None:
    told.changes[2].attempts[:] = [Attempt(1, Outcome.UNKNOWN)]
    told.changes.append(Change(BLUE, (str(uuid.UUID(int=1)),), (0,), attempts=[Attempt(1, Outcome.UNKNOWN)]))
    assert told.found() == set()


def test_an_unknown_outcome_is_resolved_by_a_duplicate(told: Told) -> None:
    told.changes[1].attempts[:] = [Attempt(0, Outcome.UNKNOWN), duplicate_of(told, 1)]
    assert told.found() == set()


def lost(told: Told) -> None:
    del told.log[-2:]
    told.next_offsets[0] -= 1
    told.states[RED] = StateRow(2, told.log[-1].state or "")


def moved(told: Told) -> None:
    told.changes[1].attempts[0] = Attempt(0, Outcome.COMMITTED, Place(1, 0, 7))


def twice(told: Told) -> None:
    told.log.append(told.log[0]._replace(offset=4, version=4))
    told.next_offsets[0] += 1


def strange(told: Told) -> None:
    told.changes.pop()


def applied_unasked(told: Told) -> None:
    told.changes[1].attempts[:] = [Attempt(0, Outcome.REFUSED)]


def applied_after_a_conflict(told: Told) -> None:
    told.changes[2].attempts[:] = [Attempt(0, Outcome.UNKNOWN), Attempt(1, Outcome.FENCED)]


def version_skipped(told: Told) -> None:
    told.log[-2:] = [row._replace(version=4) for row in told.log[-2:]]


def version_doubled(told: Told) -> None:
    told.log[-2:] = [row._replace(version=2) for row in told.log[-2:]]


def version_disorder(told: Told) -> None:
    told.log[0], told.log[3] = told.log[0]._replace(version=2), told.log[3]._replace(version=1)


def offset_skipped(told: Told) -> None:
    told.log[-2:] = [row._replace(offset=5) for row in told.log[-2:]]


def offset_not_counted(told: Told) -> None:
    told.next_offsets[0] += 1


def split(told: Told) -> None:
    told.log[-1] = told.log[-1]._replace(offset=4)
    told.next_offsets[0] += 1


def state_of_the_log_differs(told: Told) -> None:
    told.log[3] = told.log[3]._replace(state=told.log[0].state)


def state_differs(told: Told) -> None:
    told.states[RED] = StateRow(2, told.log[3].state or "")


def state_missing(told: Told) -> None:
    del told.states[BLUE]


def duplicate_differs(told: Told) -> None:
    attempt = duplicate_of(told, 1)
    told.answer(1, replace(attempt, known=(attempt.known[0]._replace(place=Place(2, 0, 1)), attempt.known[1])))


def duplicate_without_its_events(told: Told) -> None:
    attempt = duplicate_of(told, 0)
    told.answer(0, replace(attempt, known=(attempt.known[0]._replace(event_ids=()),)))


def duplicate_of_a_part(told: Told) -> None:
    attempt = duplicate_of(told, 1)
    told.answer(1, replace(attempt, known=attempt.known[:1]))


def duplicate_uncalled(told: Told) -> None:
    told.changes[1].attempts[:] = [duplicate_of(told, 1)]


def replay_committed(told: Told) -> None:
    told.answer(2, Attempt(1, Outcome.COMMITTED, place_of(told, 2)))


def conflict_differs(told: Told) -> None:
    told.changes[2].attempts.insert(0, Attempt(0, Outcome.CONFLICT, current=(1, "{}")))


def conflict_with_what_was_expected(told: Told) -> None:
    told.changes[2].attempts.insert(0, Attempt(1, Outcome.CONFLICT, current=(1, told.log[0].state)))


def epoch_disorder(told: Told) -> None:
    told.changes[3].epoch = 1


@pytest.mark.parametrize(
    ("harm", "kind"),
    [
        (lost, Kind.LOST),
        (moved, Kind.MOVED),
        (twice, Kind.TWICE),
        (strange, Kind.STRANGE),
        (applied_unasked, Kind.APPLIED_UNASKED),
        (applied_after_a_conflict, Kind.APPLIED_UNASKED),
        (version_skipped, Kind.VERSION_SKIPPED),
        (version_doubled, Kind.VERSION_DOUBLED),
        (version_disorder, Kind.VERSION_DISORDER),
        (offset_skipped, Kind.OFFSET_SKIPPED),
        (offset_not_counted, Kind.OFFSET_SKIPPED),
        (split, Kind.SPLIT),
        (state_of_the_log_differs, Kind.STATE_DIFFERS),
        (state_differs, Kind.STATE_DIFFERS),
        (state_missing, Kind.STATE_DIFFERS),
        (duplicate_differs, Kind.DUPLICATE_DIFFERS),
        (duplicate_without_its_events, Kind.DUPLICATE_DIFFERS),
        (duplicate_of_a_part, Kind.DUPLICATE_DIFFERS),
        (duplicate_uncalled, Kind.DUPLICATE_UNCALLED),
        (replay_committed, Kind.REPLAY_NOT_DUPLICATE),
        (conflict_differs, Kind.CONFLICT_DIFFERS),
        (conflict_with_what_was_expected, Kind.CONFLICT_DIFFERS),
        (epoch_disorder, Kind.EPOCH_DISORDER),
    ],
    ids=lambda value: value.__name__.replace("_", " ") if callable(value) else value.name,
)
def test_what_is_wrong_with_the_database_is_found(told: Told, harm: Callable[[Told], None], kind: Kind) -> None:
    harm(told)
    assert kind in told.found()


Feed: TypeAlias = "list[Shown]"


def gap(feed: Feed) -> None:
    del feed[1]


def end_missing(feed: Feed) -> None:
    feed.pop()


def disorder(feed: Feed) -> None:
    feed[0], feed[3] = feed[3], feed[0]


def actions_in_disorder(feed: Feed) -> None:
    feed[-1], feed[-2] = feed[-2], feed[-1]


def shown_twice(feed: Feed) -> None:
    feed.append(feed[0])


def another_action(feed: Feed) -> None:
    feed[1] = feed[1]._replace(ids=("another", *feed[1].ids[1:]))


def events_missing(feed: Feed) -> None:
    feed[1] = feed[1]._replace(ids=feed[1].ids[:1])


def one_too_many(feed: Feed) -> None:
    feed.append(feed[-1]._replace(offset=9, version=9))


@pytest.mark.parametrize(
    ("harm", "kind"),
    [
        (gap, Kind.FEED_GAP),
        (end_missing, Kind.FEED_GAP),
        (disorder, Kind.FEED_DISORDER),
        (actions_in_disorder, Kind.FEED_DISORDER),
        (shown_twice, Kind.FEED_TWICE),
        (another_action, Kind.FEED_DIFFERS),
        (events_missing, Kind.FEED_DIFFERS),
        (one_too_many, Kind.FEED_DIFFERS),
    ],
    ids=lambda value: value.__name__.replace("_", " ") if callable(value) else value.name,
)
def test_what_is_wrong_with_a_feed_is_found(told: Told, harm: Callable[[Feed], None], kind: Kind) -> None:
    wanted = commits_of(told.changes, told.database)
    shown = list(wanted)
    assert check_line("line", wanted, shown) == []
    harm(shown)
    assert kinds(check_line("line", wanted, shown)) == {kind}


def test_the_outbox_is_the_events_of_the_log_numbered_within_their_offset(told: Told) -> None:
    wanted = outbox_of(told.changes, told.database)
    assert [(item.offset, item.position) for item in wanted] == [(0, 0), (1, 0), (1, 1), (3, 0), (3, 1)]
    assert check_line("line", wanted, wanted) == []
    assert kinds(check_line("line", wanted, [*wanted[:2], *wanted[3:]])) == {Kind.FEED_GAP}


@pytest.mark.parametrize(
    "shown",
    [
        pytest.param({RED: StateRow(3, "a")}, id="missing"),
        pytest.param({RED: StateRow(3, "a"), BLUE: StateRow(0, "b")}, id="of an older version"),
        pytest.param({RED: StateRow(3, "a"), BLUE: StateRow(1, "c")}, id="with another tag"),
        pytest.param({RED: StateRow(3, "a"), BLUE: StateRow(1, "b"), "chaos/none": StateRow(1, "")}, id="of no key"),
    ],
)
def test_a_projection_that_does_not_show_its_state_is_found(shown: dict[str, StateRow]) -> None:
    states = {RED: StateRow(3, "a"), BLUE: StateRow(1, "b")}
    assert check_projections(states, dict(states)) == []
    assert kinds(check_projections(states, shown)) == {Kind.PROJECTION_DIFFERS}
