"""Commits and events as columns and rows, each way."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from asyncpg import Record

from services.chassis.errors import BridgeError
from services.chassis.identity import partition_of
from services.store.domain import (
    ActionIdReused,
    BlobMissing,
    Commit,
    Committed,
    Conflict,
    Duplicate,
    Fenced,
    KnownAction,
    Outcome,
    State,
)
from services.store.stored import events_text, projection_text, provenance_text, to_events

ACTION_KEY = "workflow_commits_action_key"
"""The constraint that an action's second row in the log breaks."""


def to_columns(commits: Sequence[Commit], partition_count: int) -> tuple[list[object], ...]:
    """The commits in columns: as bytes and text, because asyncpg looks twice at each element of an array that is neither."""
    actions = [
        (str(item), index, action, commit)
        for item, commit in enumerate(commits, 1)
        for index, action in enumerate(commit.actions)
    ]
    guards = [(str(item), guard) for item, commit in enumerate(commits, 1) for guard in commit.guards]
    blobs = [(str(item), blob) for item, commit in enumerate(commits, 1) for blob in commit.blobs]
    references = [(str(item), digest) for item, commit in enumerate(commits, 1) for digest in commit.blob_refs]
    released = [(str(item), digest) for item, commit in enumerate(commits, 1) for digest in commit.released]
    return (
        [commit.key for commit in commits],
        [str(partition_of(commit.key, partition_count)) for commit in commits],
        [str(commit.expected) for commit in commits],
        [commit.state_json for commit in commits],
        [str(commit.schema_version) for commit in commits],
        ["true" if commit.final else "false" for commit in commits],
        [projection_text(commit) for commit in commits],
        [commit.actions[-1].type for commit in commits],
        ["true" if commit.transient_actions else None for commit in commits],
        [item for item, _, _, _ in actions],
        [str(index) for _, index, _, _ in actions],
        [action.action_id.bytes for _, _, action, _ in actions],
        [action.fingerprint for _, _, action, _ in actions],
        [action.type for _, _, action, _ in actions],
        [provenance_text(action.provenance) for _, _, action, _ in actions],
        [events_text(action.events, commit.key) for _, _, action, commit in actions],
        [item for item, _ in guards],
        [guard.lease for _, guard in guards],
        [str(guard.epoch) for _, guard in guards],
        ["true" if guard.is_held else "false" for _, guard in guards],
        [item for item, _ in blobs],
        [bytes.fromhex(blob.digest) for _, blob in blobs],
        [blob.content for _, blob in blobs],
        [item for item, _ in references],
        [bytes.fromhex(digest) for _, digest in references],
        [item for item, _ in released],
        [bytes.fromhex(digest) for _, digest in released],
    )


def to_outcomes(commits: Sequence[Commit], rows: Sequence[Record]) -> list[Outcome | BridgeError | None]:
    """What became of each commit; None where another replica came between."""
    outcomes: list[Outcome | BridgeError | None] = [None] * len(commits)
    known: dict[int, list[Record]] = {}
    for row in rows:
        index = row["item"] - 1
        commit = commits[index]
        match row["outcome"]:
            case "committed":
                outcomes[index] = Committed(row["version"], row["partition"], row["commit_offset"], row["at"])
            case "known":
                known.setdefault(index, []).append(row)
            case "fenced" if index not in known:
                outcomes[index] = Fenced(row["text"], row["number"])
            case "missing" if index not in known and outcomes[index] is None:
                outcomes[index] = BlobMissing(metadata={"digest": row["digest"].hex()})
            case "conflict":
                outcomes[index] = Conflict(commit.expected, _current(commit.key, row))
    for index, actions in known.items():
        outcomes[index] = _duplicate(commits[index], actions)
    return outcomes


def _duplicate(commit: Commit, rows: Sequence[Record]) -> Duplicate | ActionIdReused:
    for row in rows:
        if not row["same"]:
            return ActionIdReused(metadata={"action_id": str(row["action_id"]), "key": commit.key})
    return Duplicate(
        [
            KnownAction(
                row["action_id"],
                Committed(row["version"], row["partition"], row["commit_offset"], row["at"]),
                to_events(row["action_id"], row["text"]),
            )
            for row in rows
        ]
    )


def _current(key: str, row: Record) -> State | None:
    if row["version"] is None:
        return None
    updated_at: datetime = row["at"]
    return State(key, row["version"], row["text"], row["number"], row["final"], updated_at, row["partition"])
