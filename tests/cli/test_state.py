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
