"""What stands as text in the log: its bytes are for good."""

from __future__ import annotations

import uuid

from services.chassis.identity import event_id
from services.store.domain import Event, EventKind, StoredEvent
from services.store.stored import events_text, to_events

KEY = "workflow/7"
EVENTS = [
    {"kind": EventKind.EVENT, "event_type": "STARTED", "payload_json": '{"n":1}'},
    {"kind": EventKind.INTENT, "event_type": "COUNT", "partition_key": "ä", "headers": {"b": "2", "a": "1"}},
]


def events() -> list[Event]:
    unsaid = {"event_id": "", "topic": "workflow", "partition_key": "", "payload_json": "", "headers": {}}
    return [Event.model_validate({**unsaid, **event}) for event in EVENTS]


def test_the_text_of_events_has_their_kinds_as_numbers_and_the_key_where_none_is_said() -> None:
    assert events_text(events(), KEY) == (
        '[[1,"STARTED","workflow","workflow/7","{\\"n\\":1}",{}],[2,"COUNT","workflow","ä","{}",{"b":"2","a":"1"}]]'
    )


def test_no_events_have_no_text() -> None:
    assert events_text([], KEY) is None
    assert to_events(uuid.UUID(int=1), None) == []


def test_events_are_read_back_from_their_text_with_the_ids_of_their_places() -> None:
    action_id = uuid.UUID(int=7)
    first, second = to_events(action_id, events_text(events(), KEY))
    assert first == StoredEvent(event_id(action_id, 0), 1, "STARTED", "workflow", KEY, '{"n":1}', {})
    assert second == StoredEvent(event_id(action_id, 1), 2, "COUNT", "workflow", "ä", "{}", {"b": "2", "a": "1"})
