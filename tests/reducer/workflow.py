"""Actions of the stamping workflow, as values of the domain and as messages; a test says what differs."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from typing import Any

from omninode.bridge.reducer.v1 import reducer_pb2
from services.reducer.domain import Action

TIME = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
DIGEST = "a" * 64
STAMP = {
    "stamp_id": "0197c0de-0000-7000-8000-000000000000",
    "digest": DIGEST,
    "content_type": "text/x-python",
    "size_bytes": "27",
}
SUBMITTED: dict[str, Any] = {
    "workflow_id": "build-17",
    "request_id": "request-17",
    "namespace": "docs",
    "file_path": "answer.py",
    "size_bytes": 27,
    "content_digest": DIGEST,
    "metadata": {"author": "Ada"},
}
FAILED: dict[str, Any] = {
    "step": "stamp_creation",
    "attempt_count": 3,
    "code": 3,
    "reason": "INVALID_FIELD",
    "message": "namespace: is malformed",
}


def step(name: str, **result: Any) -> dict[str, Any]:
    """The payload of a step that was done at once."""
    return {"step": name, "attempt_count": 1, "result": result}


STEPS = [
    step("validate_input"),
    step("hash_generation", digest=DIGEST),
    step("stamp_creation", stamp=STAMP, created=True),
    step("event_publishing"),
]
WALK: list[tuple[str, dict[str, Any]]] = [
    ("submitted", SUBMITTED),
    ("started", {}),
    *(("step_completed", payload) for payload in STEPS),
    ("completed", {}),
]
"""What a workflow goes through that ends well."""


def values(type_: str, payload: dict[str, Any] | str | None = None, **fields: Any) -> dict[str, Any]:
    """The fields of an action."""
    if payload is None:
        payload = dict(WALK).get(type_, {})
    return {
        "key": "workflow/build-17",
        "action_id": str(uuid.uuid4()),
        "reducer": "stamping_workflow",
        "type": type_,
        "payload_json": payload if isinstance(payload, str) else json.dumps(payload),
        "correlation_id": "",
        "guards": (),
        "blobs": (),
        "blob_refs": (),
        "effect_id": "",
        "actor": "",
        **fields,
    }


def action(type_: str, payload: dict[str, Any] | str | None = None, **fields: Any) -> Action:
    """An action as a value of the domain."""
    return Action.model_validate({"occur_time": TIME, **values(type_, payload, **fields)})


def message(type_: str, payload: dict[str, Any] | str | None = None, **fields: Any) -> reducer_pb2.Action:
    """An action as a message."""
    return reducer_pb2.Action(**{"occur_time": TIME, **values(type_, payload, **fields)})
