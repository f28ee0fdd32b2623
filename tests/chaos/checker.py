"""Compares what was acknowledged and refused with what the database holds and what feeds showed. Pure: it reads nothing itself."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import NamedTuple, TypeVar

from tests.chaos.history import Attempt, Change, Outcome, Place

K = TypeVar("K")


class Kind(Enum):
    """What can be wrong."""

    LOST = "an acknowledged action is not in the log"
    MOVED = "an action stands elsewhere than was acknowledged"
    TWICE = "an action was applied twice"
    STRANGE = "the log holds an action that nobody sent"
    APPLIED_UNASKED = "an action was committed though every attempt that could have was refused"
    VERSION_SKIPPED = "a key's versions have a gap"
    VERSION_DOUBLED = "two commits of a key have one version"
    VERSION_DISORDER = "a later commit of a key has a lower version"
    OFFSET_SKIPPED = "a partition's offsets have a gap"
    SPLIT = "the rows of one offset are not one change"
    STATE_DIFFERS = "a state is not what its commits make"
    DUPLICATE_DIFFERS = "a duplicate did not name the first result"
    DUPLICATE_UNCALLED = "a change was answered as a duplicate before anything was known of it"
    REPLAY_NOT_DUPLICATE = "an acknowledged action was sent again and not answered as a duplicate"
    CONFLICT_DIFFERS = "a conflict carried another state than its version had"
    EPOCH_DISORDER = "a fenced owner changed something"
    FEED_GAP = "a feed left something out"
    FEED_DISORDER = "a feed showed a key out of order"
    FEED_TWICE = "a feed showed something twice along one cursor line"
    FEED_DIFFERS = "a feed showed something that is not in the log"
    PROJECTION_DIFFERS = "a projection does not show its key's state"


class Violation(NamedTuple):
    """Something that no fault may bring about."""

    kind: Kind
    what: str

    def __str__(self) -> str:
        return f"{self.kind.value}: {self.what}"


class LogRow(NamedTuple):
    """A row of workflow_commits."""

    partition: int
    offset: int
    position: int
    action_id: str
    key: str
    version: int
    state: str | None
    """In the first row of a commit."""


class StateRow(NamedTuple):
    """A row of workflow_state, or what GetProjection shows of it."""

    version: int
    state: str


class Shown(NamedTuple):
    """An item of a feed: an action of WatchCommits, or an event of WatchOutbox."""

    partition: int
    offset: int
    position: int
    """Of the action in its commit, or of the event in its offset."""
    key: str
    version: int
    ids: tuple[str, ...]
    """The action's id and those of its events; or the event's alone."""


class Database(NamedTuple):
    """What the database holds."""

    log: Sequence[LogRow]
    """In the order of partition, offset and index."""
    states: Mapping[str, StateRow]
    next_offsets: Mapping[int, int]


def check_database(changes: Sequence[Change], database: Database) -> list[Violation]:
    """Everything about the log and the states that contradicts the history or itself."""
    by_action = {action_id: change for change in changes for action_id in change.action_ids}
    places = {row.action_id: Place(row.version, row.partition, row.offset) for row in database.log}
    states = {(row.key, row.version): row.state for row in database.log if row.state is not None}
    return [
        *_check_actions(database.log, by_action),
        *_check_offsets(database),
        *_check_versions(database.log),
        *_check_states(database, by_action),
        *_check_epochs(database.log, by_action),
        *(violation for change in changes for violation in _check_answers(change, places, states)),
    ]


def check_projections(states: Mapping[str, StateRow], shown: Mapping[str, StateRow]) -> list[Violation]:
    """Projections, as versions and tags, against the states that they are of; `states` holds tags, too."""
    return [
        Violation(Kind.PROJECTION_DIFFERS, f"{key}: {shown.get(key)} for {states.get(key)}")
        for key in sorted(states.keys() | shown.keys())
        if states.get(key) != shown.get(key)
    ]


def commits_of(changes: Sequence[Change], database: Database) -> list[Shown]:
    """What a feed of commits with events is to show, whole."""
    indexes = _indexes(changes)
    return [
        Shown(*row[:3], row.key, row.version, (row.action_id, *_event_ids(indexes, row.action_id)))
        for row in database.log
    ]


def outbox_of(changes: Sequence[Change], database: Database) -> list[Shown]:
    """What the outbox is to show, all partitions together."""
    indexes = _indexes(changes)
    shown = []
    counted: Counter[tuple[int, int]] = Counter()
    for row in database.log:
        for event in _event_ids(indexes, row.action_id):
            place = (row.partition, row.offset)
            shown.append(Shown(*place, counted[place], row.key, row.version, (event,)))
            counted[place] += 1
    return shown


def check_line(name: str, expected: Iterable[Shown], shown: Sequence[Shown]) -> list[Violation]:
    """What one cursor line showed, from its beginning over all its connections, against what there is."""
    wanted = {item[:3]: item for item in expected}
    violations = []
    seen: set[tuple[int, int, int]] = set()
    last: dict[str, tuple[int, int]] = {}
    for item in shown:
        place = item[:3]
        if wanted.get(place) != item:
            violations.append(Violation(Kind.FEED_DIFFERS, f"{name}: {item} for {wanted.get(place)}"))
        if place in seen:
            violations.append(Violation(Kind.FEED_TWICE, f"{name}: {item}"))
        elif item.key in last and (item.version, item.position) <= last[item.key]:
            violations.append(Violation(Kind.FEED_DISORDER, f"{name}: {item} after {last[item.key]}"))
        seen.add(place)
        last[item.key] = (item.version, item.position)
    violations += [Violation(Kind.FEED_GAP, f"{name}: {item}") for place, item in wanted.items() if place not in seen]
    return violations


def _check_actions(log: Sequence[LogRow], by_action: Mapping[str, Change]) -> Iterator[Violation]:
    for action_id, count in Counter(row.action_id for row in log).items():
        if count > 1:
            yield Violation(Kind.TWICE, f"{action_id}: {count} times")
        if action_id not in by_action:
            yield Violation(Kind.STRANGE, action_id)
    for place, rows in _grouped(log, lambda row: (row.partition, row.offset)).items():
        change = by_action.get(rows[0].action_id)
        if change is not None and (
            tuple(row.action_id for row in rows) != change.action_ids
            or [row.position for row in rows] != list(range(len(rows)))
            or {row.key for row in rows} != {change.key}
        ):
            yield Violation(Kind.SPLIT, f"{place} holds {rows} for {change.action_ids} of {change.key}")


def _check_offsets(database: Database) -> Iterator[Violation]:
    there = _grouped(database.log, lambda row: row.partition)
    for partition in sorted(there.keys() | database.next_offsets.keys()):
        offsets = {row.offset for row in there.get(partition, ())}
        wanted = set(range(database.next_offsets.get(partition, 0)))
        if offsets != wanted:
            yield Violation(
                Kind.OFFSET_SKIPPED, f"partition {partition}: {sorted(offsets ^ wanted)[:10]} of {len(wanted)}"
            )


def _check_versions(log: Sequence[LogRow]) -> Iterator[Violation]:
    for key, rows in _grouped(log, lambda row: row.key).items():
        versions = [of_offset[0].version for of_offset in _grouped(rows, lambda row: row.offset).values()]
        doubled = [version for version, count in Counter(versions).items() if count > 1]
        missing = sorted(set(range(1, max(versions) + 1)) - set(versions))
        if doubled:
            yield Violation(Kind.VERSION_DOUBLED, f"{key}: {doubled[:10]}")
        if missing:
            yield Violation(Kind.VERSION_SKIPPED, f"{key}: {missing[:10]} of {max(versions)}")
        if versions != sorted(versions):
            yield Violation(Kind.VERSION_DISORDER, f"{key}: {versions[:20]}")


def _check_states(database: Database, by_action: Mapping[str, Change]) -> Iterator[Violation]:
    last: dict[str, StateRow] = {}
    commits = [row for row in database.log if row.position == 0 and row.action_id in by_action]
    for row in sorted(commits, key=lambda row: (row.key, row.version)):
        before = last.get(row.key)
        folded = by_action[row.action_id].fold(before.state if before else None)
        if row.state != folded:
            yield Violation(Kind.STATE_DIFFERS, f"{row.key} at {row.version} in the log: {row.state} for {folded}")
        last[row.key] = StateRow(row.version, row.state or "")
    for key in sorted(last.keys() | database.states.keys()):
        if last.get(key) != database.states.get(key):
            yield Violation(Kind.STATE_DIFFERS, f"{key}: {database.states.get(key)} for {last.get(key)}")


def _check_epochs(log: Sequence[LogRow], by_action: Mapping[str, Change]) -> Iterator[Violation]:
    highest: dict[str, int] = {}
    for row in sorted(log, key=lambda row: (row.key, row.version)):
        change = by_action.get(row.action_id)
        if change is None or change.epoch is None:
            continue
        if change.epoch < highest.get(row.key, 0):
            yield Violation(Kind.EPOCH_DISORDER, f"{row.key} at {row.version}: {change.epoch} after {highest[row.key]}")
        highest[row.key] = max(change.epoch, highest.get(row.key, 0))


def _check_answers(
    change: Change, places: Mapping[str, Place], states: Mapping[tuple[str, int], str]
) -> Iterator[Violation]:
    place = places.get(change.action_ids[0])
    acknowledged = unknown = False
    for attempt in change.attempts:
        yield from _check_answer(change, attempt, places, states)
        if attempt.outcome is Outcome.DUPLICATE and not (acknowledged or unknown):
            yield Violation(Kind.DUPLICATE_UNCALLED, f"{change.key} {change.action_ids}")
        # An unknown attempt may be answered here after the fact by any of them: it is on its way beside the one that follows it.
        if acknowledged and attempt.outcome not in (Outcome.DUPLICATE, Outcome.UNKNOWN, Outcome.REFUSED):
            yield Violation(Kind.REPLAY_NOT_DUPLICATE, f"{change.key} {change.action_ids}: {attempt}")
        acknowledged |= attempt.outcome in (Outcome.COMMITTED, Outcome.DUPLICATE)
        unknown |= attempt.outcome is Outcome.UNKNOWN
    if place is not None and not any(_may_have_made(attempt, place) for attempt in change.attempts):
        yield Violation(Kind.APPLIED_UNASKED, f"{change.key} {change.action_ids} at {place}: {change.attempts}")


def _check_answer(
    change: Change, attempt: Attempt, places: Mapping[str, Place], states: Mapping[tuple[str, int], str]
) -> Iterator[Violation]:
    match attempt.outcome:
        case Outcome.COMMITTED:
            for action_id in change.action_ids:
                if action_id not in places:
                    yield Violation(Kind.LOST, f"{change.key} {action_id}: acknowledged at {attempt.place}")
                elif places[action_id] != attempt.place:
                    yield Violation(
                        Kind.MOVED,
                        f"{change.key} {action_id}: acknowledged at {attempt.place}, is at {places[action_id]}",
                    )
        case Outcome.DUPLICATE:
            wanted = [
                (action_id, places.get(action_id), change.event_ids(index))
                for index, action_id in enumerate(change.action_ids)
            ]
            if [tuple(known) for known in attempt.known] != wanted:
                yield Violation(Kind.DUPLICATE_DIFFERS, f"{change.key}: {attempt.known} for {wanted}")
        case Outcome.CONFLICT if attempt.current is not None:
            version, state = attempt.current
            if version == attempt.expected or states.get((change.key, version)) != state:
                yield Violation(
                    Kind.CONFLICT_DIFFERS,
                    f"{change.key}: expected {attempt.expected}, {attempt.current} for {states.get((change.key, version))}",
                )
        case _:
            pass


def _may_have_made(attempt: Attempt, place: Place) -> bool:
    """Whether a commit at this place may be this attempt's."""
    if attempt.outcome is Outcome.COMMITTED:
        return attempt.place == place
    return attempt.outcome is Outcome.UNKNOWN and attempt.expected in (None, place.version - 1)


def _indexes(changes: Sequence[Change]) -> dict[str, tuple[Change, int]]:
    return {action_id: (change, index) for change in changes for index, action_id in enumerate(change.action_ids)}


def _event_ids(indexes: Mapping[str, tuple[Change, int]], action_id: str) -> tuple[str, ...]:
    if action_id not in indexes:
        return ()
    change, index = indexes[action_id]
    return change.event_ids(index)


def _grouped(rows: Iterable[LogRow], key: Callable[[LogRow], K]) -> dict[K, list[LogRow]]:
    groups: dict[K, list[LogRow]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return groups
