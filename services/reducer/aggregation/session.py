"""A session as it is described: what its key, or the keys of its parts, say together. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from services.reducer.aggregation.config import Config
from services.reducer.aggregation.contract import SessionStage
from services.reducer.aggregation.durable import OWN_SESSION, Head, Progress, key_of


class Part(NamedTuple):
    """A session's key as it is committed; of the mesh's own session one of several."""

    version: int
    head: Head
    committed_at: datetime
    """By the database's clock."""


class Session(NamedTuple):
    """What is known of a session without its panes."""

    name: str
    config: Config
    stage: SessionStage
    finished: bool
    offset: int
    progress: Progress
    committed_at: datetime
    part_count: int

    @classmethod
    def of(cls, parts: Sequence[Part | None]) -> Session:
        """The session of these parts, one of which is there at least."""
        there = [part for part in parts if part is not None]
        heads = [part.head for part in there]
        marks = [head.progress.watermark for head in heads]
        known = [mark for mark in marks if mark is not None]
        return cls(
            name=heads[0].session,
            config=heads[0].config,
            stage=SessionStage.AGGREGATING if any(head.writer for head in heads) else SessionStage.IDLE,
            finished=len(there) == len(parts) and all(head.finished for head in heads),
            # The offsets of several parts are those of several inputs.
            offset=heads[0].offset if len(parts) == 1 else 0,
            progress=Progress(
                watermark=min(known) if len(known) == len(parts) else None,
                item_count=sum(head.progress.item_count for head in heads),
                late_count=sum(head.progress.late_count for head in heads),
                invalid_count=sum(head.progress.invalid_count for head in heads),
                open_windows=sum(head.progress.open_windows for head in heads),
            ),
            committed_at=max(part.committed_at for part in there),
            part_count=len(parts),
        )


def keys_of(session: str, partition_count: int) -> list[str]:
    """The keys of a session, part by part; only the mesh's own has more than one."""
    if session == OWN_SESSION:
        return [key_of(session, part) for part in range(partition_count)]
    return [key_of(session)]
