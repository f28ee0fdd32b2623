"""The stamping workflow as the node's contract has it: what each action makes of each state, and what it tells."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.chassis.errors import InvalidArgument
from services.reducer.domain import EventKind, Fold, IllegalTransition
from tests.reducer.node import stamping_workflow
from tests.reducer.workflow import DIGEST, FAILED, STAMP, STEPS, SUBMITTED, WALK, action, step

MACHINE = stamping_workflow()
NOW = "2026-01-02T03:04:05.678901Z"
WAYS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "": [],
    "PENDING": WALK[:1],
    "PROCESSING": WALK[:2],
    "COMPLETED": WALK,
    "FAILED": [*WALK[:2], ("failed", FAILED)],
}
"""A way to each state."""
ALLOWED = {
    "": "submitted",
    "PENDING": "started,failed",
    "PROCESSING": "step_completed,completed,failed",
    "COMPLETED": "",
    "FAILED": "",
}
PAYLOADS = {**dict(WALK), "failed": FAILED}


def walk(steps: list[tuple[str, dict[str, Any]]]) -> list[Fold]:
    folds: list[Fold] = []
    for type_, payload in steps:
        folds.append(MACHINE.fold(folds[-1].state if folds else None, action(type_, payload)))
    return folds


def told(fold: Fold) -> dict[str, dict[str, Any]]:
    return {event.event_type: json.loads(event.payload_json) for event in fold.events}


@pytest.mark.parametrize("type_", PAYLOADS)
@pytest.mark.parametrize("state", WAYS)
def test_each_state_takes_the_actions_that_it_allows_and_no_other(state: str, type_: str) -> None:
    folds = walk(WAYS[state])
    current = folds[-1].state if folds else None
    if type_ in ALLOWED[state].split(","):
        MACHINE.fold(current, action(type_, PAYLOADS[type_]))
        return
    with pytest.raises(IllegalTransition) as refusal:
        MACHINE.fold(current, action(type_, PAYLOADS[type_]))
    assert refusal.value.metadata["allowed"] == ALLOWED[state]


def test_a_workflow_that_ends_well_holds_its_steps_and_its_stamp() -> None:
    last = walk(WALK)[-1]
    assert json.loads(last.state_json) == {
        **SUBMITTED,
        "state": "COMPLETED",
        "submit_time": NOW,
        "start_time": NOW,
        "end_time": NOW,
        "steps": [{"name": payload["step"], "attempt_count": 1, "end_time": NOW} for payload in STEPS],
        "stamp": STAMP,
    }
    assert last.final


def test_a_workflow_that_fails_holds_why() -> None:
    last = walk([*WALK[:3], ("failed", FAILED)])[-1]
    assert json.loads(last.state_json) == {
        **SUBMITTED,
        "state": "FAILED",
        "submit_time": NOW,
        "start_time": NOW,
        "end_time": NOW,
        "steps": [
            {"name": "validate_input", "attempt_count": 1, "end_time": NOW},
            {"name": "stamp_creation", "attempt_count": 3, "end_time": NOW},
        ],
        "failure": FAILED,
    }
    assert last.final


def test_a_workflow_may_fail_before_it_starts() -> None:
    last = walk([WALK[0], ("failed", FAILED)])[-1]
    assert "start_time" not in last.state
    assert last.state["state"] == "FAILED"


def test_a_step_done_again_replaces_its_first_record() -> None:
    again = ("step_completed", {**step("hash_generation", digest=DIGEST), "attempt_count": 2})
    steps: Any = walk([*WALK[:4], again])[-1].state["steps"]
    assert [(item["name"], item["attempt_count"]) for item in steps] == [("validate_input", 1), ("hash_generation", 2)]


def test_each_action_tells_what_happened_in_order() -> None:
    assert [[event.event_type for event in fold.events] for fold in walk(WALK)] == [
        ["STATE_TRANSITION"],
        ["WORKFLOW_STARTED", "STATE_TRANSITION"],
        ["STEP_COMPLETED"],
        ["STEP_COMPLETED", "HASH_GENERATED"],
        ["STEP_COMPLETED", "STAMP_CREATED"],
        ["STEP_COMPLETED"],
        ["WORKFLOW_COMPLETED", "STATE_TRANSITION", "update_aggregate"],
    ]
    failed = walk([*WALK[:2], ("failed", FAILED)])[-1]
    assert list(told(failed)) == ["WORKFLOW_FAILED", "STATE_TRANSITION", "update_aggregate"]


def test_every_event_says_of_which_workflow_and_namespace() -> None:
    for fold in walk(WALK) + walk(WAYS["FAILED"]):
        for payload in told(fold).values():
            assert (payload["workflow_id"], payload["namespace"]) == ("build-17", "docs")


def test_only_the_intent_is_an_intent() -> None:
    events = [event for fold in walk(WALK) for event in fold.events]
    intents = [(event.event_type, event.topic) for event in events if event.kind is EventKind.INTENT]
    assert intents == [("update_aggregate", "aggregate")]
    assert {event.topic for event in events if event.kind is EventKind.EVENT} == {"workflow"}


def test_events_hold_what_belongs_to_them() -> None:
    payloads: dict[str, dict[str, Any]] = {}
    for fold in walk(WALK):
        payloads |= told(fold)
    whose = {"workflow_id": "build-17", "namespace": "docs"}
    assert payloads == {
        "STATE_TRANSITION": {**whose, "from_state": "PROCESSING", "to_state": "COMPLETED", "time": NOW},
        "WORKFLOW_STARTED": {**whose, "file_path": "answer.py", "start_time": NOW},
        "STEP_COMPLETED": {**whose, "step": "event_publishing", "attempt_count": 1, "end_time": NOW},
        "HASH_GENERATED": {**whose, "digest": DIGEST},
        "STAMP_CREATED": {**whose, "stamp_id": STAMP["stamp_id"], "digest": DIGEST, "created": True},
        "WORKFLOW_COMPLETED": {**whose, "stamp_id": STAMP["stamp_id"], "digest": DIGEST, "end_time": NOW},
        "update_aggregate": {
            **whose,
            "state": "COMPLETED",
            "content_type": "text/x-python",
            "size_bytes": "27",
            "file_path": "answer.py",
            "time": NOW,
        },
    }


def test_the_first_transition_comes_from_no_state() -> None:
    assert "from_state" not in told(walk(WALK[:1])[0])["STATE_TRANSITION"]


def test_a_failure_tells_its_cause_and_counts_without_a_stamp() -> None:
    payloads = told(walk([WALK[0], ("failed", FAILED)])[-1])
    assert payloads["WORKFLOW_FAILED"]["failure"] == FAILED
    assert payloads["update_aggregate"]["state"] == "FAILED"
    assert "content_type" not in payloads["update_aggregate"]


def test_the_projection_finds_a_workflow_by_its_ids_and_digests() -> None:
    projection = walk(WALK)[-1].projection
    assert (projection.tag, projection.namespace) == ("COMPLETED", "docs")
    assert projection.indices == {
        "workflow_id": "build-17",
        "request_id": "request-17",
        "content_digest": DIGEST,
        "digest": DIGEST,
    }


@pytest.mark.parametrize("payload", STEPS, ids=lambda payload: payload["step"])
def test_a_step_without_its_result_is_refused(payload: dict[str, Any]) -> None:
    state = walk(WALK[:2])[-1].state
    with pytest.raises(InvalidArgument) as refusal:
        MACHINE.fold(state, action("step_completed", {**payload, "result": None}))
    assert refusal.value.violations[0].field.startswith("payload_json.result")


def test_a_step_that_the_workflow_does_not_have_is_refused_with_those_that_it_has() -> None:
    with pytest.raises(InvalidArgument) as refusal:
        MACHINE.fold(walk(WALK[:2])[-1].state, action("step_completed", step("lunch")))
    (violation,) = refusal.value.violations
    assert violation.field == "payload_json.step"
    assert violation.description == "must be one of validate_input, event_publishing, hash_generation, stamp_creation"
