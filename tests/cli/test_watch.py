"""What every watch verb does with its feed, told by `omnibridge state watch` against a fake store."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.feed.v1 import feed_pb2
from omninode.bridge.store.v1 import store_pb2 as pb
from services.chassis.errors import BridgeError, FailedPrecondition, InvalidArgument, ResourceExhausted, Unavailable
from services.chassis.port import free_ports
from services.cli import following
from tests.cli.conftest import Run
from tests.cli.fake import END, serving
from tests.cli.fake_store import FakeStore

COMMAND = [sys.executable, "-m", "services.cli.main"]


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(following, "LONGEST_PAUSE_SECONDS", 0.05)


def action(number: int, actor: str = "orchestrator", state_json: str = "") -> pb.CommittedAction:
    item = pb.CommittedAction(
        partition=7, offset=40 + number, key=f"workflow/{number}", version=3, action_id=f"id-{number}", type="completed"
    )
    item.provenance.actor = actor
    item.state_json = state_json
    item.commit_time.FromJsonString("2026-03-01T12:00:00.250Z")
    return item


def items(cursor: str, *numbers: int) -> pb.WatchCommitsResponse:
    return pb.WatchCommitsResponse(items=[action(number) for number in numbers], cursor=cursor)


def caught_up(cursor: str) -> pb.WatchCommitsResponse:
    return pb.WatchCommitsResponse(caught_up=feed_pb2.CaughtUp(position=cursor))


def checkpoint(cursor: str) -> pb.WatchCommitsResponse:
    return pb.WatchCommitsResponse(checkpoint=feed_pb2.Checkpoint(position=cursor))


def stopping() -> Unavailable:
    error = Unavailable("the node is stopping", reason=errors_pb2.ERROR_REASON_SHUTTING_DOWN)
    # The command's own patience is what is looked at, not the channel's.
    error.client_may_retry = False
    return error


def test_an_action_is_a_line(run: Run, store: FakeStore) -> None:
    store.commits.then(items("c1", 1, 2))

    ended = run("state", "watch", "--count", "2")

    assert ended.status == 0
    assert ended.out.splitlines() == [
        "2026-03-01 12:00:00.250Z  workflow/1  v3  completed  orchestrator  7:41",
        "2026-03-01 12:00:00.250Z  workflow/2  v3  completed  orchestrator  7:42",
    ]
    assert ended.err == "omnibridge: to go on from here: --cursor c1\n"


def test_an_actions_line_has_its_state_and_nothing_that_a_terminal_obeys(run: Run, store: FakeStore) -> None:
    said = action(1, actor="a\n\x1b[2J", state_json='{"a": "\\n"}')
    store.commits.then(pb.WatchCommitsResponse(items=[said], cursor="c1"))

    (line,) = run("state", "watch", "--states", "--count", "1").out.splitlines()

    assert line.endswith('  completed  a\\n\\x1b[2J  7:41  {"a": "\\n"}')


def test_every_filter_of_the_contract_is_sent(run: Run, store: FakeStore) -> None:
    store.commits.then(items("c2", 1))
    run(
        *("state", "watch", "--collection", "workflow", "--key", "workflow/a", "--key", "workflow/b"),
        *("--type", "started", "--type", "completed", "--cursor", "c1", "--states", "--count", "1"),
    )

    (request,) = store.commits.requests
    assert request == pb.WatchCommitsRequest(
        collection="workflow",
        keys=["workflow/a", "workflow/b"],
        types=["started", "completed"],
        cursor="c1",
        include_states=True,
    )


def test_a_json_line_has_a_cursor_behind_which_nothing_after_it_is_missing(run: Run, store: FakeStore) -> None:
    store.commits.then(caught_up("c0"), items("c1", 1, 2), checkpoint("c2"), items("c3", 3, 4))

    ended = run("state", "watch", "--json", "--count", "3")

    assert [(record["key"], record["cursor"]) for record in ended.records] == [
        ("workflow/1", "c0"),
        ("workflow/2", "c1"),
        ("workflow/3", "c2"),
    ]
    # The fourth was not shown, so its response is to come again.
    assert ended.err == "omnibridge: to go on from here: --cursor c2\n"


@pytest.mark.parametrize(
    ("end", "line"),
    [
        pytest.param(stopping(), "SHUTTING_DOWN: the node is stopping", id="shutting down"),
        pytest.param(lambda: END, "UNAVAILABLE: the stream ended", id="ended"),
    ],
)
def test_a_broken_feed_goes_on_behind_its_last_response(
    run: Run, store: FakeStore, end: BridgeError | Callable[[], object], line: str
) -> None:
    store.commits.then(items("c1", 1), end).then(end).then(checkpoint("c2"), end).then(items("c3", 2))

    ended = run("state", "watch", "--from-beginning", "--count", "2", "--json")

    assert ended.status == 0
    assert [record["key"] for record in ended.records] == ["workflow/1", "workflow/2"]
    requests = store.commits.requests
    assert [request.cursor for request in requests] == ["", "c1", "c1", "c2"]
    assert [request.from_beginning for request in requests] == [True, False, False, False]
    # It went twice: it was heard in between.
    assert ended.err.splitlines()[:-1] == [f"omnibridge: store: {line}; reconnecting until it is back"] * 2


def test_a_feed_that_broke_before_it_said_anything_begins_as_it_was_asked_to(run: Run, store: FakeStore) -> None:
    store.commits.then(stopping()).then(items("c1", 1))

    run("state", "watch", "--from-beginning", "--count", "1")

    assert [request.from_beginning for request in store.commits.requests] == [True, True]


def test_a_silent_feed_is_begun_again(run: Run, store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "SILENCE_SECONDS", 0.2)
    store.commits.then(items("c1", 1)).then(items("c2", 2))

    ended = run("state", "watch", "--count", "2")

    assert ended.status == 0
    assert "nothing was heard for 0.2 s" in ended.err
    assert [request.cursor for request in store.commits.requests] == ["", "c1"]


def test_a_node_that_is_killed_is_waited_for(run: Run) -> None:
    store = FakeStore()
    (port,) = free_ports(1)
    begun, shown = threading.Event(), threading.Event()
    store.commits.then(items("c1", 1), shown.set).then(items("c2", 2))

    def twice() -> None:
        with serving(store, port):
            begun.set()
            assert shown.wait(20)
        with serving(store, port):
            assert over.wait(20)

    over = threading.Event()
    node = threading.Thread(target=twice)
    node.start()
    try:
        assert begun.wait(20)
        ended = run("state", "watch", "--count", "2", "--store", f"127.0.0.1:{port}")
    finally:
        over.set()
        node.join()

    assert ended.status == 0
    assert len(ended.out.splitlines()) == 2
    assert ended.err.count("reconnecting until it is back") == 1
    assert store.commits.requests[-1].cursor == "c1"


def test_a_node_that_never_was_there_is_an_error(run: Run) -> None:
    target = f"127.0.0.1:{free_ports(1)[0]}"

    ended = run("state", "watch", "--store", target)

    assert ended.status == 1
    assert ended.err == f"omnibridge: store: no node answers at {target}; start one by: omnibridge up\n"


def test_a_node_without_room_for_a_watcher_is_waited_for(run: Run, store: FakeStore) -> None:
    full = ResourceExhausted("too many watchers", reason=errors_pb2.ERROR_REASON_TOO_MANY_WATCHERS)
    store.commits.then(full).then(full).then(items("c1", 1))

    ended = run("state", "watch", "--count", "1")

    assert ended.status == 0
    assert ended.err.count("store: TOO_MANY_WATCHERS: too many watchers; ") == 1


def test_a_refusal_that_waiting_does_not_mend_is_one_line(run: Run, store: FakeStore) -> None:
    store.commits.then(InvalidArgument("not of this feed", reason=errors_pb2.ERROR_REASON_CURSOR_MISMATCH))

    ended = run("state", "watch", "--cursor", "c9")

    assert (ended.status, ended.err) == (1, "omnibridge: store: CURSOR_MISMATCH: not of this feed\n")


def test_what_ends_a_feed_for_good_leaves_its_cursor(run: Run, store: FakeStore) -> None:
    store.commits.then(items("c1", 1), FailedPrecondition("no more", reason=errors_pb2.ERROR_REASON_INVALID_FIELD))

    ended = run("state", "watch")

    assert ended.status == 1
    assert ended.err == ("omnibridge: to go on from here: --cursor c1\nomnibridge: store: INVALID_FIELD: no more\n")


@pytest.mark.parametrize(
    ("reason", "line"),
    [
        pytest.param(
            feed_pb2.RESET_REASON_RETENTION,
            "RESET_REASON_RETENTION: what follows the cursor is older than the feed keeps",
            id="retention",
        ),
        pytest.param(
            feed_pb2.RESET_REASON_UNKNOWN_POSITION,
            "RESET_REASON_UNKNOWN_POSITION: the feed never came to the cursor's place; was its database restored?",
            id="unknown position",
        ),
    ],
)
def test_a_reset_ends_with_its_reason_and_the_oldest_cursor(
    run: Run, store: FakeStore, reason: feed_pb2.ResetReason.ValueType, line: str
) -> None:
    reset = feed_pb2.Reset(reason=reason, oldest_cursor="c5")
    store.commits.then(items("c1", 1), stopping()).then(pb.WatchCommitsResponse(reset=reset))

    ended = run("state", "watch")

    assert ended.status == 1
    last = ended.err.splitlines()[-1]
    assert last == f"omnibridge: store: {line}; what is still there begins with: --cursor c5"
    assert "c1" not in ended.err


def test_notices_are_for_a_terminal_alone(run: Run, store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    behind = pb.WatchCommitsResponse(fell_behind=feed_pb2.FellBehind(position="c1"))
    script = (caught_up("c0"), behind, checkpoint("c2"), items("c3", 1))
    store.commits.then(*script).then(*script)

    plain = run("state", "watch", "--count", "1")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    watched = run("state", "watch", "--count", "1")

    assert len(plain.err.splitlines()) == 1
    assert [word in watched.err for word in ("caught up", "fell behind")] == [True, True]
    assert len(watched.err.splitlines()) == 3
    assert plain.out == watched.out


def test_a_cursor_and_the_beginning_exclude_each_other(run: Run) -> None:
    ended = run("state", "watch", "--cursor", "c1", "--from-beginning")

    assert ended.status == 2
    assert ended.err.startswith("omnibridge: Invalid value: --cursor and --from-beginning exclude each other")


@pytest.fixture
def watching(store: FakeStore) -> Iterator[subprocess.Popen[str]]:
    """A process that has printed an action, and waits for the next."""
    store.commits.then(items("c1", 1))
    command = [*COMMAND, "state", "watch"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=dict(os.environ)) as process:
        assert process.stdout is not None
        try:
            assert "workflow/1" in process.stdout.readline()
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("number", "status"),
    [pytest.param(signal.SIGINT, 130, id="SIGINT"), pytest.param(signal.SIGTERM, 143, id="SIGTERM")],
)
def test_a_signal_ends_it_with_the_cursor_to_go_on_from(
    watching: subprocess.Popen[str], number: signal.Signals, status: int
) -> None:
    watching.send_signal(number)

    _, err = watching.communicate(timeout=20)
    assert (watching.returncode, err) == (status, "omnibridge: to go on from here: --cursor c1\n")


def test_a_signal_ends_it_while_the_node_is_away(tmp_path: Path) -> None:
    store = FakeStore()
    store.commits.then(items("c1", 1))
    pipe = subprocess.PIPE
    with serving(store) as target:
        process = subprocess.Popen(
            [*COMMAND, "state", "watch", "--store", target], stdout=pipe, stderr=pipe, text=True, cwd=tmp_path
        )
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
    with process:
        # Before anything can fail: leaving this context waits for the process.
        told = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)

    assert told == "omnibridge: store: no node answers; reconnecting until it is back\n"
    assert (process.returncode, err) == (130, "omnibridge: to go on from here: --cursor c1\n")
