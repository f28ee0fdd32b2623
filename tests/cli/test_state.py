"""`omnibridge state`, against a fake store."""

from __future__ import annotations

import json

import pytest

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.store.v1 import store_pb2 as pb
from services.chassis.errors import BridgeError, Unavailable, invalid_field
from services.chassis.port import free_ports
from tests.cli.conftest import Run
from tests.cli.fake_store import FakeStore

TEXT = '{"state": "COMPLETED",  "path": "\\u001b\\u2028ä"}'


@pytest.fixture
def key(store: FakeStore) -> str:
    """A key that the store knows."""
    store.states["workflow/x"] = pb.State(key="workflow/x", version=3, state_json=TEXT, partition=7, final=True)
    return "workflow/x"


def test_the_state_is_printed_as_json_for_people(run: Run, key: str) -> None:
    ended = run("state", "get", key)

    assert (ended.status, ended.err) == (0, "")
    assert json.loads(ended.out) == json.loads(TEXT)
    assert ended.out.isascii()
    assert '\n  "state": "COMPLETED",\n' in ended.out


@pytest.mark.parametrize(
    ("stored", "printed"),
    [
        pytest.param('{"a": 1e999}', '{"a": 1e999}', id="a number beyond a double"),
        pytest.param('{"a": 0.1000000000000000055}', '{"a": 0.1000000000000000055}', id="more digits than a double's"),
        pytest.param('{"a": 1, "a": "\u009b"}', '{"a": 1, "a": "\\u009b"}', id="a name twice"),
    ],
)
def test_what_printing_for_people_would_change_is_printed_as_it_is_stored(
    run: Run, store: FakeStore, stored: str, printed: str
) -> None:
    store.states["workflow/x"] = pb.State(key="workflow/x", version=1, state_json=stored)

    assert run("state", "get", "workflow/x").out == f"{printed}\n"


def test_json_is_one_line_with_the_text_byte_for_byte_and_its_place(run: Run, key: str) -> None:
    (record,) = run("state", "get", "--json", key).records

    assert record["state_json"] == TEXT
    assert (record["key"], record["version"]) == (key, "3")
    assert (record["partition"], record["final"]) == (7, True)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        pytest.param(None, "STATE_NOT_FOUND: the key has no state", id="not found"),
        pytest.param(invalid_field("key", "is odd"), "INVALID_FIELD: key: is odd", id="malformed"),
        pytest.param(
            Unavailable("PostgreSQL is not there", reason=errors_pb2.ERROR_REASON_DATABASE_UNAVAILABLE),
            "DATABASE_UNAVAILABLE: PostgreSQL is not there",
            id="unavailable",
        ),
    ],
)
def test_what_the_store_refuses_is_one_line(run: Run, store: FakeStore, error: BridgeError | None, line: str) -> None:
    store.refusal = error

    ended = run("state", "get", "workflow/y", "--json")

    assert (ended.status, ended.out, ended.err) == (1, "", f"omnibridge: store: {line}\n")


def test_a_store_that_is_not_there_is_named_with_the_way_to_start_it(run: Run) -> None:
    target = f"127.0.0.1:{free_ports(1)[0]}"

    ended = run("state", "get", "workflow/x", "--store", target)

    assert ended.status == 1
    assert ended.err == f"omnibridge: store: no node answers at {target}; start one by: omnibridge up\n"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        pytest.param(["state"], "Missing command", id="no command"),
        pytest.param(["state", "get"], "Missing argument 'KEY'", id="no key"),
        pytest.param(["state", "get", "\udcff"], "it is not UTF-8", id="bytes"),
        pytest.param(["state", "get", "a/b", "--store", "nowhere"], "--store nowhere", id="malformed target"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(run: Run, arguments: list[str], line: str) -> None:
    ended = run(*arguments)

    assert ended.status == 2
    assert line in ended.err
    assert ended.err.count("\n") == 1


def test_a_state_is_read_at_a_version(run: Run, store: FakeStore, key: str) -> None:
    run("state", "get", key)
    run("state", "get", key, "--at-version", "2")

    assert [request.at_version for request in store.requests] == [0, 2]


def _action(version: int, provenance: pb.Provenance | None = None) -> pb.CommittedAction:
    action = pb.CommittedAction(key="workflow/x", version=version, type="step_completed", provenance=provenance)
    action.commit_time.FromJsonString("2026-03-01T12:00:00.5Z")
    return action


def test_a_history_is_a_line_an_action_however_wide(run: Run, store: FakeStore) -> None:
    actor, effect, correlation = "a" * 255, "e" * 512, "c" * 128
    told = pb.Provenance(actor=actor, effect_id=effect, correlation_id=correlation)
    store.actions = [_action(2, told), _action(1)]

    lines = run("state", "history", "workflow/x").out.splitlines()

    rows = [line.split() for line in lines]
    assert ["2", "step_completed", actor, effect, correlation, "2026-03-01", "12:00:00.500Z"] in rows
    assert ["1", "step_completed", "-", "-", "-", "2026-03-01", "12:00:00.500Z"] in rows
    assert lines[-1] == "2 actions"


def test_a_history_follows_the_pages_up_to_its_limit(run: Run, store: FakeStore) -> None:
    store.actions = [_action(version) for version in range(1500, 0, -1)]

    ended = run("state", "history", "workflow/x", "--limit", "1200", "--json")

    assert [record["version"] for record in ended.records] == [str(version) for version in range(1500, 300, -1)]
    assert [(request.key, request.page_size) for request in store.requests] == [
        ("workflow/x", 1000),
        ("workflow/x", 200),
    ]


def test_retention_is_a_row_a_kind(run: Run, store: FakeStore) -> None:
    for kind, days, count, held in (
        (pb.RETENTION_KIND_COMMITS, 30, 1200, 7),
        (pb.RETENTION_KIND_EVENTS, 7, 0, 0),
    ):
        entry = store.retention.counts.add(kind=kind, count=count, held_count=held)
        entry.retention.FromSeconds(days * 86400)

    ended = run("state", "retention")

    rows = [line.split() for line in ended.out.splitlines()]
    assert ["commits", "30", "d", "1,200", "7"] in rows
    assert ["events", "7", "d", "0", "0"] in rows
    first, _ = run("state", "retention", "--json").records
    assert (first["kind"], first["retention"], first["count"]) == ("RETENTION_KIND_COMMITS", "2592000s", "1200")
