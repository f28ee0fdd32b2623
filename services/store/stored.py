"""What of an action stands as text in its row of the log, each way. Pure."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from datetime import datetime

from pydantic_core import to_json

from services.chassis.identity import event_id
from services.store.domain import UNSAID, Commit, Event, Provenance, StoredEvent


def projection_text(commit: Commit) -> str | None:
    """A commit's projection; None where it brings none."""
    projection = commit.projection
    if projection is None:
        return None
    return _json([projection.tag, projection.namespace, projection.indices, projection.extras_json])


def provenance_text(provenance: Provenance) -> str:
    """Who did an action."""
    occurred = provenance.occur_time
    return _json([provenance.effect_id, provenance.actor, occurred and occurred.isoformat(), provenance.correlation_id])


def events_text(events: Sequence[Event], key: str) -> str | None:
    """An action's events; None where it has none. An event without a partition key gets `key`."""
    if not events:
        return None
    return _json(
        [
            # The kind as a number: pydantic takes longer for an enum than for all the rest.
            [
                int(event.kind),
                event.event_type,
                event.topic,
                event.partition_key or key,
                event.payload_json,
                event.headers,
            ]
            for event in events
        ]
    )


def to_provenance(text: str) -> Provenance:
    """Who did an action, from its text, which is trusted."""
    if text == "{}":  # of appended events
        return UNSAID
    effect_id, actor, occurred, correlation_id = json.loads(text)
    return Provenance.model_construct(
        effect_id=effect_id,
        actor=actor,
        occur_time=occurred and datetime.fromisoformat(occurred),
        correlation_id=correlation_id,
    )


def to_events(action_id: uuid.UUID, text: str | None) -> list[StoredEvent]:
    """An action's events, from their text."""
    return [StoredEvent(event_id(action_id, index), *fields) for index, fields in enumerate(json.loads(text or "[]"))]


def _json(value: object) -> str:
    # pydantic's own: the standard library's takes four times as long.
    return to_json(value).decode()
