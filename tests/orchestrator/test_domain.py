"""What a workflow is and what is done next: tables and laws, without a node."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from omninode.bridge.errors.v1 import errors_pb2
from services.chassis import contracts, errors
from services.chassis.contracts import ContractError
from services.chassis.identity import BRIDGE
from services.orchestrator.domain import (
    ContentMismatch,
    Coordination,
    Origin,
    RequestIdReused,
    Retry,
    Step,
    StepName,
    StepTimedOut,
    Submission,
    Workflow,
    WorkflowIdInUse,
    WorkflowName,
    WorkflowState,
    action_id,
    check_content,
    completion,
    default_workflow_id,
    effect_id,
    failure,
    refusal,
    workflow_of,
)
from services.orchestrator.node import CONTRACT, coordination_of

STEPS = [name.value for name in StepName]
STATE: dict[str, Any] = {
    "state": "PROCESSING",
    "workflow_id": "w",
    "request_id": "r",
    "namespace": "docs",
    "file_path": "a.py",
    "size_bytes": 3,
    "content_digest": blake3(b"abc").hexdigest(),
    "metadata": {"author": "Ada"},
    "submit_time": "2026-01-02T03:04:05.000006Z",
    "start_time": "2026-01-02T03:04:06.000000Z",
    "steps": [{"name": "validate_input", "attempt_count": 2, "end_time": "2026-01-02T03:04:07.100000Z"}],
}


def origin(**fields: str) -> Origin:
    return Origin(**{"request_id": "r", "workflow_id": "w", "namespace": "docs", "file_path": "a.py", **fields})


def submission(metadata: str = "{}", **fields: str) -> Submission:
    return Submission(origin(**fields), b"abc", blake3(b"abc").hexdigest(), metadata)


def workflow(**fields: Any) -> Workflow:
    return workflow_of(json.dumps({**STATE, **fields}), 2)


def coordination() -> Coordination:
    return coordination_of(contracts.load(CONTRACT))


def step(**fields: Any) -> Step:
    retry = Retry(max_attempts=3, initial_backoff_seconds=1, max_backoff_seconds=8)
    return Step(
        **{"name": "stamp_creation", "timeout_seconds": 1, "total_timeout_seconds": 100, "retry": retry, **fields}
    )


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        pytest.param({"request_id": ""}, "request_id", id="no request_id"),
        pytest.param({"request_id": "a\n"}, "request_id", id="a request_id with a control character"),
        pytest.param({"request_id": "a" * 256}, "request_id", id="a long request_id"),
        pytest.param({"workflow_id": ""}, "workflow_id", id="an empty workflow_id"),
        pytest.param({"workflow_id": "a/b"}, "workflow_id", id="a workflow_id with a slash"),
        pytest.param({"workflow_id": "a" * 256}, "workflow_id", id="a long workflow_id"),
        pytest.param({"namespace": ""}, "namespace", id="an empty namespace"),
        pytest.param({"namespace": "a b"}, "namespace", id="a namespace with a space"),
        pytest.param({"file_path": "/etc/passwd"}, "file_path", id="an absolute path"),
        pytest.param({"file_path": "a/../b"}, "file_path", id="a path that climbs"),
        pytest.param({"file_path": "a\0b"}, "file_path", id="a path with NUL"),
        pytest.param({"file_path": "ä" * 2049}, "file_path", id="a long path"),
    ],
)
def test_a_malformed_submission_is_refused_by_the_name_of_its_field(fields: dict[str, str], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        origin(**fields)
    assert errors.from_validation(caught.value).metadata == {"field": field}


def test_a_workflow_is_asked_for_by_a_well_formed_id() -> None:
    with pytest.raises(ValidationError):
        WorkflowName(workflow_id="a/b")


def test_a_submission_without_an_id_gets_the_uuid_of_its_namespace_and_request() -> None:
    assert default_workflow_id("docs", "r") == str(uuid.uuid5(BRIDGE, "docs\0r"))


def test_the_action_that_takes_a_workflow_in_is_known_by_its_request_alone() -> None:
    assert submission().action_id == str(uuid.uuid5(BRIDGE, "workflow\0docs\0r"))
    assert submission(workflow_id="other", file_path="b.py").action_id == submission().action_id
    assert submission(namespace="other").action_id != submission().action_id


def test_the_payload_of_a_submission_says_all_of_it_but_the_content() -> None:
    assert json.loads(submission('{"author":"Ada"}').payload) == {
        "workflow_id": "w",
        "request_id": "r",
        "namespace": "docs",
        "file_path": "a.py",
        "size_bytes": 3,
        "content_digest": blake3(b"abc").hexdigest(),
        "metadata": {"author": "Ada"},
    }


def test_what_a_runner_reports_is_another_action_for_each_owner_and_step() -> None:
    assert action_id("w", "step_completed", "s", 3) == str(uuid.uuid5(BRIDGE, "w\0step_completed\0s\x003"))
    assert len({action_id("w", kind, "s", epoch) for kind in ("started", "completed") for epoch in (1, 2)}) == 4


def test_an_effect_bears_the_same_id_on_every_attempt_and_fits_the_stamping_nodes_bound() -> None:
    assert effect_id("w", "stamp_creation") == "w/stamp_creation"
    long = {effect_id("a" * 254 + end, "stamp_creation") for end in "ab"}
    assert len(long) == 2
    assert all(len(name) <= 255 and name.endswith("/stamp_creation") for name in long)


@pytest.mark.parametrize(("size", "digest"), [(4, STATE["content_digest"]), (3, "0" * 64)], ids=["size", "digest"])
def test_content_that_is_not_the_submitted_one_is_refused(size: int, digest: str) -> None:
    check_content(workflow(), 3, STATE["content_digest"])
    with pytest.raises(ContentMismatch):
        check_content(workflow(), size, digest)


def test_a_state_is_read_as_its_workflow() -> None:
    read = workflow(end_time=None, stamp={"digest": "d"}, failure={"step": "s"})
    assert read.state is WorkflowState.PROCESSING
    assert (read.workflow_id, read.version, read.namespace, read.file_path) == ("w", 2, "docs", "a.py")
    assert (read.size_bytes, read.content_digest, read.metadata) == (3, STATE["content_digest"], {"author": "Ada"})
    assert [(done.name, done.attempt_count) for done in read.steps] == [("validate_input", 2)]
    assert read.steps[0].end_time.isoformat() == "2026-01-02T03:04:07.100000+00:00"
    assert (read.stamp, read.failure, read.end_time) == ({"digest": "d"}, {"step": "s"}, None)


@pytest.mark.parametrize("state", list(WorkflowState))
def test_only_a_completed_or_failed_workflow_has_ended(state: WorkflowState) -> None:
    assert state.ended == (state in ("COMPLETED", "FAILED"))


@pytest.mark.parametrize("done", range(len(STEPS) + 1))
def test_what_is_next_is_what_is_not_recorded_in_the_contracts_order(done: int) -> None:
    ended = [{"name": name, "attempt_count": 1, "end_time": STATE["submit_time"]} for name in STEPS[:done]]
    assert [step.name for step in coordination().remaining(workflow(steps=ended))] == STEPS[done:]


def test_the_contract_gives_a_restarting_node_five_minutes() -> None:
    assert {step.total_timeout_seconds for step in coordination().steps} == {300}


@pytest.mark.parametrize(
    ("steps", "line"),
    [
        pytest.param("[]", 2, id="none"),
        pytest.param("\n  - {name: paint}", 3, id="an unknown one"),
        pytest.param(
            "[{name: validate_input, timeout_seconds: 0, total_timeout_seconds: 1, retry: {}}]",
            2,
            id="no time",
        ),
    ],
)
def test_a_contract_with_impossible_steps_is_refused_at_its_line(tmp_path: Any, steps: str, line: int) -> None:
    head = "name: o\nnode_type: ORCHESTRATOR\ncontract_version: {major: 0, minor: 1, patch: 0}\ndescription: o\n"
    (tmp_path / "steps.yaml").write_text(f"# Steps.\nsteps: {steps}\n")
    (tmp_path / "contract.yaml").write_text(head + "workflow_coordination: {$ref: ./steps.yaml}\n")
    with pytest.raises(ContractError, match=rf"steps\.yaml:{line}: workflow_coordination\.steps"):
        coordination_of(contracts.load(tmp_path / "contract.yaml"))


def test_a_contract_without_steps_is_refused(tmp_path: Any) -> None:
    (tmp_path / "contract.yaml").write_text(
        "name: o\nnode_type: ORCHESTRATOR\ncontract_version: {major: 0, minor: 1, patch: 0}\ndescription: o\n"
    )
    with pytest.raises(ContractError, match="workflow_coordination"):
        coordination_of(contracts.load(tmp_path / "contract.yaml"))


def test_a_step_that_stands_twice_is_refused() -> None:
    with pytest.raises(ValidationError, match="twice"):
        Coordination(steps=(step(), step()))


@pytest.mark.parametrize(
    ("cause", "attempt_count", "elapsed", "goes_on"),
    [
        pytest.param(errors.Unavailable(), 50, 90, True, id="the node is away"),
        pytest.param(errors.ResourceExhausted(), 50, 90, True, id="the node is full"),
        pytest.param(StepTimedOut(), 50, 90, True, id="the node is slow"),
        pytest.param(errors.Aborted(), 50, 90, True, id="another came first"),
        pytest.param(errors.Unavailable(), 50, 99, False, id="away for too long"),
        pytest.param(errors.InvalidArgument(), 1, 0, False, id="bad input"),
        pytest.param(errors.NotFound(), 1, 0, False, id="not there"),
        pytest.param(errors.AlreadyExists(), 1, 0, False, id="there already"),
        pytest.param(errors.FailedPrecondition(), 1, 0, False, id="not ready for it"),
        pytest.param(RuntimeError(), 2, 0, True, id="a fault"),
        pytest.param(RuntimeError(), 3, 0, False, id="a fault too often"),
        pytest.param(RuntimeError(), 1, 99.5, False, id="a fault too late"),
    ],
)
def test_a_step_is_tried_again_while_that_may_help(
    cause: Exception, attempt_count: int, elapsed: float, goes_on: bool
) -> None:
    assert (step().wait(cause, attempt_count, elapsed, 0.0) is not None) == goes_on


@given(attempt_count=st.integers(1, 5000), chance=st.floats(0, 1))
@settings(max_examples=50)
def test_a_wait_is_between_half_and_all_of_the_doubled_backoff(attempt_count: int, chance: float) -> None:
    whole = min(8.0, 2.0 ** min(attempt_count - 1, 4))
    wait = step().retry.backoff(attempt_count, chance)
    assert whole / 2 <= wait <= whole


@pytest.mark.parametrize(
    ("reason", "kind", "metadata"),
    [
        pytest.param(
            errors_pb2.ERROR_REASON_ACTION_ID_REUSED,
            RequestIdReused,
            {"request_id": "r", "namespace": "docs"},
            id="the request with another body",
        ),
        pytest.param(
            errors_pb2.ERROR_REASON_ILLEGAL_TRANSITION,
            WorkflowIdInUse,
            {"workflow_id": "w"},
            id="another request's workflow",
        ),
        pytest.param(errors_pb2.ERROR_REASON_QUEUE_FULL, errors.ResourceExhausted, {}, id="anything else as it is"),
    ],
)
def test_a_refused_submission_is_told_in_its_own_words(
    reason: errors.Reason, kind: type[errors.BridgeError], metadata: dict[str, str]
) -> None:
    refused = refusal(errors.ResourceExhausted(reason=reason), origin())
    assert type(refused) is kind
    assert refused.metadata == metadata


def test_a_step_that_is_done_is_reported_with_its_result() -> None:
    told = json.loads(completion("hash_generation", 2, {"digest": "d"}))
    assert told == {"step": "hash_generation", "attempt_count": 2, "result": {"digest": "d"}}


@pytest.mark.parametrize(
    ("cause", "told"),
    [
        pytest.param(
            errors.invalid_field("file_path", "must be relative"),
            {"code": 3, "reason": "INVALID_FIELD", "message": "file_path: must be relative"},
            id="a refusal",
        ),
        pytest.param(
            RuntimeError("password"),
            {"code": 13, "reason": "INTERNAL_ERROR", "message": "internal error"},
            id="a fault, of which nothing internal is told",
        ),
    ],
)
def test_a_failure_is_reported_with_its_reason(cause: Exception, told: dict[str, Any]) -> None:
    payload = json.loads(failure("stamp_creation", 3, cause))
    assert payload == {"step": "stamp_creation", "attempt_count": 3, **told}
