"""`omnibridge aggregates feed`, against a fake reducer that counts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.reducer.v1 import aggregation_pb2 as pb
from services.chassis.errors import Aborted, AlreadyExists, BridgeError, Unavailable
from services.chassis.port import free_ports
from services.cli import following, tally
from tests.cli.conftest import Ended, Run
from tests.cli.fake_reducer import FakeReducer

COMMAND = [sys.executable, "-m", "services.cli.main"]


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "FIRST_PAUSE_SECONDS", 0.01)


def record(number: int, **fields: object) -> dict[str, object]:
    return {"event_time": f"2026-03-01T12:00:{number % 60:02}Z", "namespace": f"n{number % 3}"} | fields


def write(path: Path, *lines: Any) -> Path:
    """A file of records, and of what else a line may be."""
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def pane(number: int, **fields: Any) -> pb.Pane:
    made = pb.Pane(strategy=pb.AGGREGATION_STRATEGY_TIME_WINDOW, count=number, revision=1, **fields)
    made.window_start_time.FromJsonString("2026-03-01T12:00:00Z")
    made.window_end_time.FromJsonString("2026-03-01T12:00:05Z")
    return made


def final(number: int) -> pb.Pane:
    return pane(number, timing=pb.PANE_TIMING_REVISED, is_final=True)


def gone() -> Unavailable:
    return Unavailable("the node is stopping", reason=errors_pb2.ERROR_REASON_SHUTTING_DOWN)


def sizes(reducer: FakeReducer) -> list[tuple[int, int]]:
    """Of each message its first offset, and how many items it had."""
    return [(message.first_offset, len(message.event_times_us)) for message in reducer.messages]


@pytest.fixture
def ten(tmp_path: Path) -> Path:
    return write(tmp_path / "ten.jsonl", *map(record, range(10)))


def summary(ended: Ended) -> dict[str, Any]:
    told: dict[str, Any] = ended.records[-1]["summary"]
    return told


def test_every_line_is_counted_once_in_messages_of_the_batch_size(run: Run, reducer: FakeReducer, ten: Path) -> None:
    reducer.answers = {3: [final(1)], 10: [final(2), pane(3, timing=pb.PANE_TIMING_ON_TIME)]}

    ended = run("aggregates", "feed", ten, "--session", "s", "--batch", "4")

    assert (ended.status, ended.err) == (0, "")
    assert reducer.counted == list(range(1, 11))
    assert sizes(reducer) == [(1, 4), (5, 4), (9, 2)]
    assert ended.out.startswith("10 counted, 2 final panes in ")
    assert ended.out.count("\n") == 1
    assert reducer.openings == [pb.OpenSession(session="s")]
    assert not reducer.finished


def test_columns_hold_what_the_lines_say_and_nothing_that_none_has(
    run: Run, reducer: FakeReducer, tmp_path: Path
) -> None:
    file = write(
        tmp_path / "f",
        record(0, file_type="text/plain", size_bytes=7, workflow_id="w", workflow_state="FAILED", other=[1]),
        {"event_time": 1.5, "namespace": "n0", "file_type": None, "size_bytes": 0},
    )

    run("aggregates", "feed", file, "--session", "s")

    (columns,) = reducer.messages
    assert columns == pb.ItemColumns(
        first_offset=1,
        event_times_us=[1_772_366_400_000_000, 1_500_000],
        sizes_bytes=[7, 0],
        texts=["n0", "text/plain", "", "w", "FAILED"],
        namespaces=[0, 0],
        file_types=[1, 2],
        workflow_ids=[3, 2],
        workflow_states=[4, 2],
    )


def test_every_option_of_the_configuration_is_sent(run: Run, reducer: FakeReducer, ten: Path) -> None:
    run(
        *("aggregates", "feed", ten, "--session", "s", "--strategy", "custom", "--strategy", "time_window"),
        *("--window", "1h", "--hop", "30m", "--delay", "500ms", "--lateness", "2d", "--early", "0"),
        *("--by-namespace", "--custom-fold", "f", "--acknowledged", "0"),
    )

    config = pb.AggregationConfig(
        strategies=[pb.AGGREGATION_STRATEGY_CUSTOM, pb.AGGREGATION_STRATEGY_TIME_WINDOW],
        by_namespace=True,
        custom_fold="f",
    )
    config.hopping.size.FromSeconds(3600)
    config.hopping.hop.FromSeconds(1800)
    config.watermark_delay.FromMilliseconds(500)
    config.allowed_lateness.FromSeconds(2 * 86400)
    config.early_period.FromSeconds(0)
    assert reducer.openings == [pb.OpenSession(session="s", config=config)]


@pytest.mark.parametrize(
    ("option", "window"),
    [pytest.param("--window", "tumbling", id="tumbling"), pytest.param("--gap", "session_window", id="session")],
)
def test_a_window_is_tumbling_or_ends_by_a_silence(
    run: Run, reducer: FakeReducer, ten: Path, option: str, window: str
) -> None:
    run("aggregates", "feed", ten, "--session", "s", option, "5s")

    assert reducer.openings[0].config.WhichOneof("window") == window


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        pytest.param(["--hop", "1s"], "--hop needs --window", id="hop alone"),
        pytest.param(["--gap", "1s", "--window", "5s"], "--gap excludes --window and --hop", id="gap and window"),
        pytest.param(["--window", "5 s"], "a length of time is written as", id="window"),
        pytest.param(["--batch", "10001"], "Invalid value for '--batch'", id="batch"),
        pytest.param(["--strategy", "none"], "'none' is not one of", id="strategy"),
    ],
)
def test_options_that_make_no_sense_are_wrong_usage(run: Run, ten: Path, arguments: list[str], line: str) -> None:
    ended = run("aggregates", "feed", ten, "--session", "s", *arguments)

    assert ended.status == 2
    assert line in ended.err


@pytest.mark.parametrize("moment", ["before_commit", "after_commit"])
@pytest.mark.parametrize("finish", ["--keep", "--finish"])
def test_a_broken_stream_loses_and_doubles_nothing(
    run: Run, reducer: FakeReducer, ten: Path, moment: str, finish: str
) -> None:
    getattr(reducer, moment).update({3: gone(), 10: gone()})
    reducer.late = {4, 9}
    reducer.answers = {3: [final(3)], 10: [final(10)]}

    ended = run("aggregates", "feed", ten, "--session", "s", "--batch", "2", "--panes", finish)

    assert ended.status == 0
    assert reducer.counted == [1, 2, 3, 5, 6, 7, 8, 10]
    assert [line.split("  ")[4] for line in ended.out.splitlines()[:-1]] == ["3 items", "10 items"]
    assert ended.out.splitlines()[-1].startswith("8 counted, 2 late, 2 final panes in ")
    assert ended.err.count("late: the watermark was at 2026-03-01 12:00:00.000Z") == 2
    assert ended.err.count("SHUTTING_DOWN: the node is stopping; reconnecting until it is back") == 2
    assert [opening.acknowledged_offset for opening in reducer.openings] == [0, 2, 8]
    again = [(3, 2), (9, 2)] if moment == "before_commit" else []
    assert sorted(sizes(reducer)) == sorted([(first, 2) for first in range(1, 11, 2)] + again)
    assert reducer.finished == (finish == "--finish")


def test_a_stream_that_ends_too_early_is_begun_again(run: Run, reducer: FakeReducer, ten: Path) -> None:
    reducer.ends, reducer.answers = {10}, {10: [final(10)]}

    ended = run("aggregates", "feed", ten, "--session", "s", "--batch", "5")

    assert ended.status == 0
    assert ended.out.startswith("10 counted, 1 final pane in ")
    assert "UNAVAILABLE: the stream ended before all was acknowledged; reconnecting" in ended.err


def test_an_end_that_was_not_acknowledged_is_asked_after(run: Run, reducer: FakeReducer, ten: Path) -> None:
    reducer.after_finish = gone()

    ended = run("aggregates", "feed", ten, "--session", "s", "--finish")

    assert ended.status == 0
    assert [opening.acknowledged_offset for opening in reducer.openings] == [0, 10]
    assert ended.out.startswith("10 counted, ")


def test_a_file_fed_again_goes_on_behind_what_is_counted(run: Run, reducer: FakeReducer, ten: Path) -> None:
    reducer.offset = 7

    ended = run("aggregates", "feed", ten, "--session", "s")

    assert reducer.counted == [8, 9, 10]
    assert sizes(reducer) == [(8, 3)]
    assert ended.out.startswith("3 counted, 7 passed over, 0 final panes in ")


def test_a_file_that_is_counted_whole_is_only_opened(run: Run, reducer: FakeReducer, ten: Path) -> None:
    run("aggregates", "feed", ten, "--session", "s")
    ended = run("aggregates", "feed", ten, "--session", "s", "--acknowledged", "10", "--finish")

    assert ended.status == 0
    assert len(reducer.messages) == 1
    assert reducer.openings[1].acknowledged_offset == 10
    assert reducer.finished
    assert ended.out.endswith("; the session has ended\n")


def test_a_pipe_is_fed_as_its_lines_come_and_counted_from_its_first(
    run: Run, reducer: FakeReducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, end = os.pipe()
    reducer.offset = 1
    reducer.before_commit = {2: gone()}

    def go_on() -> None:
        # What came first was sent, and not held back until there is more.
        reducer.on_commit = lambda: None
        os.write(end, json.dumps(record(3)).encode())
        os.close(end)

    reducer.on_commit = go_on
    os.write(end, "".join(f"{json.dumps(record(number))}\n" for number in (1, 2)).encode())
    with open(begin) as stdin:  # noqa: PTH123 (a descriptor)
        monkeypatch.setattr(sys, "stdin", stdin)
        ended = run("aggregates", "feed", "-", "--session", "s", "--json")

    assert ended.status == 0
    assert reducer.counted == [2, 3]
    assert [summary(ended)[name] for name in ("counted", "passed_over", "acknowledged")] == [2, 1, 3]


@pytest.mark.parametrize("file", ["-", "absent"])
def test_an_input_that_is_not_there_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    monkeypatch.setattr(sys, "stdin", None)

    ended = run("aggregates", "feed", file, "--session", "s")

    assert (ended.status, len(ended.err.splitlines())) == (1, 1)
    assert ended.err.startswith(f"omnibridge: {'stdin' if file == '-' else file}: ")


BAD = [record(1), "{", "", "[]", record(5, size_bytes="x"), record(6), {"namespace": "n"}]


def test_lines_that_are_no_records_are_told_and_passed_over(run: Run, reducer: FakeReducer, tmp_path: Path) -> None:
    file = write(tmp_path / "f", *BAD)

    ended = run("aggregates", "feed", file, "--session", "s")

    assert ended.status == 1
    assert reducer.counted == [1, 6]
    assert sizes(reducer) == [(1, 1), (6, 2)]
    assert sorted(ended.err.splitlines()) == [
        f"omnibridge: {file}:2: is no JSON: EOF while parsing an object at column 1",
        f"omnibridge: {file}:4: is no JSON object",
        f"omnibridge: {file}:5: size_bytes: must be a whole number of 64 bits",
        f"omnibridge: {file}:7: event_time must be set",
    ]
    assert ended.out.startswith("2 counted, 1 refused, 3 malformed, 0 final panes in ")


def test_strictly_the_first_malformed_line_is_the_end(run: Run, reducer: FakeReducer, tmp_path: Path) -> None:
    file = write(tmp_path / "f", *BAD)

    ended = run("aggregates", "feed", file, "--session", "s", "--strict", "--finish")

    assert ended.status == 1
    assert reducer.counted == [1]
    assert not reducer.finished
    assert ended.err.splitlines() == [
        "omnibridge: acknowledged up to line 1; to go on, the same again with --acknowledged 1",
        f"omnibridge: {file}:2: is no JSON: EOF while parsing an object at column 1",
    ]


def test_of_many_complaints_the_first_are_told(
    run: Run, reducer: FakeReducer, ten: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tally, "TOLD", 2)
    reducer.late = set(range(1, 9))

    ended = run("aggregates", "feed", ten, "--session", "s")
    told = run("aggregates", "feed", ten, "--session", "s", "--json")

    assert ended.status == 0
    assert len(ended.err.splitlines()) == 3
    assert ended.err.splitlines()[-1] == f"omnibridge: {ten}: 6 more lines are late"
    # A new run has seen no answers, and is given those that there were; it counted nothing.
    assert [each["late"]["line"] for each in told.records[:-1]] == list(range(1, 9))
    assert (summary(told)["counted"], summary(told)["late"]) == (0, 8)


def test_panes_are_json_lines_before_the_summary(run: Run, reducer: FakeReducer, ten: Path) -> None:
    reducer.answers = {1: [pane(1, timing=pb.PANE_TIMING_EARLY)], 10: [final(2)]}

    ended = run("aggregates", "feed", ten, "--session", "s", "--panes", "--json")

    assert [each["pane"]["timing"] for each in ended.records[:-1]] == ["PANE_TIMING_EARLY", "PANE_TIMING_REVISED"]
    assert summary(ended)["final_panes"] == 1


@pytest.mark.parametrize(
    ("error", "line"),
    [
        pytest.param(
            Aborted("another stream writes it", reason=errors_pb2.ERROR_REASON_SESSION_TAKEN_OVER),
            "SESSION_TAKEN_OVER: another stream writes it",
            id="taken over",
        ),
        pytest.param(
            AlreadyExists("open.config.tumbling", reason=errors_pb2.ERROR_REASON_SESSION_CONFIG_DIFFERS),
            "SESSION_CONFIG_DIFFERS: open.config.tumbling",
            id="another configuration",
        ),
    ],
)
def test_a_refusal_ends_it_with_its_reason(
    run: Run, reducer: FakeReducer, ten: Path, error: BridgeError, line: str
) -> None:
    reducer.before_commit = {5: error}

    ended = run("aggregates", "feed", ten, "--session", "s", "--batch", "2")

    assert ended.status == 1
    assert ended.err.splitlines() == [
        "omnibridge: acknowledged up to line 4; to go on, the same again with --acknowledged 4",
        f"omnibridge: reducer: {line}",
    ]


def test_a_session_that_has_forgotten_lines_is_not_fed(run: Run, reducer: FakeReducer, ten: Path) -> None:
    ended = run("aggregates", "feed", ten, "--session", "s", "--acknowledged", "5")

    assert ended.status == 1
    assert "session s goes on at line 1, though line 5 was acknowledged" in ended.err
    assert not reducer.messages


def test_a_node_that_is_not_there_is_named_at_once(run: Run, ten: Path) -> None:
    target = f"127.0.0.1:{free_ports(1)[0]}"

    ended = run("aggregates", "feed", ten, "--session", "s", "--reducer", target)

    assert (ended.status, ended.out) == (1, "")
    assert ended.err == f"omnibridge: reducer: no node answers at {target}; start one by: omnibridge up\n"


def test_a_bar_shows_how_many_lines_are_acknowledged(
    run: Run, reducer: FakeReducer, ten: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)

    assert "10/10" in run("aggregates", "feed", ten, "--session", "s").err


@pytest.fixture
def feeding(reducer: FakeReducer) -> Iterator[subprocess.Popen[str]]:
    """A process that has fed one line of its stdin, printed a pane of it, and waits for more."""
    reducer.answers = {1: [final(1)]}
    pipe = subprocess.PIPE
    command = [*COMMAND, "aggregates", "feed", "-", "--session", "s", "--panes"]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=dict(os.environ)) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(record(1)) + "\n")
            process.stdin.flush()
            assert "1 item" in process.stdout.readline()
            yield process
        finally:
            process.kill()


def test_ctrl_c_says_how_to_go_on(feeding: subprocess.Popen[str]) -> None:
    feeding.send_signal(signal.SIGINT)

    assert feeding.wait(20) == 130
    assert feeding.stderr is not None
    assert feeding.stderr.read() == (
        "omnibridge: acknowledged up to line 1; to go on, the same again with --acknowledged 1\n"
    )
