"""How the command ends, whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from services.cli import document, failure
from services.cli.app import VERBS
from tests.cli.conftest import Run

COMMAND = [sys.executable, "-m", "services.cli.main"]


def test_help_names_every_verb(run: Run) -> None:
    ended = run("--help")

    assert ended.status == 0
    assert all(name in ended.out for name in VERBS)


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_has_its_own_help(run: Run, name: str) -> None:
    ended = run(name, "--help")

    assert ended.status == 0
    assert f"omnibridge {name}" in ended.out


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        pytest.param(KeyboardInterrupt(), 130, "", id="Ctrl-C"),
        pytest.param(
            OSError(28, "No space left on device", "/x"), 1, "omnibridge: /x: No space left on device\n", id="OSError"
        ),
        pytest.param(failure.CommandError("why", 7), 7, "omnibridge: why\n", id="CommandError"),
    ],
)
def test_an_error_is_one_line_or_none(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, line: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(document, "digest", fail)
    # The verb itself reports a path's OSError; one that comes from elsewhere reaches the door.
    monkeypatch.setattr(failure.Failed, "of", fail)

    ended = run("hash", "x")

    assert (ended.status, ended.err) == (status, line)


def test_a_bug_is_one_line_that_names_its_place(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(document, "digest", fail)

    ended = run("hash", "x")

    assert ended.status == 1
    assert ended.err.startswith("omnibridge: a bug of the command: ZeroDivisionError: oops (at ")
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize(
    ("number", "status"),
    [
        pytest.param(signal.SIGINT, 130, id="SIGINT"),
        pytest.param(signal.SIGTERM, 143, id="SIGTERM"),
        pytest.param(signal.SIGHUP, 129, id="SIGHUP"),
    ],
)
def test_a_signal_ends_the_command_quietly(tmp_path: Path, number: signal.Signals, status: int) -> None:
    (tmp_path / "a").write_bytes(b"")
    pipe = subprocess.PIPE
    with subprocess.Popen([*COMMAND, "hash", tmp_path / "a", "-"], stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        # Its first answer says that it is at work; the second waits for a stdin that does not end.
        assert process.stdout.readline().endswith(b"/a\n")
        process.send_signal(number)
        assert (process.wait(20), process.stderr.read()) == (status, b"")


def test_a_reader_that_goes_away_is_no_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as stdout:
        done = subprocess.run([*COMMAND, "hash", tmp_path / "a"], stdout=stdout, stderr=subprocess.PIPE, check=False)

    assert done.returncode == 1
    assert done.stderr == b""


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        pytest.param("a b", "a b", id="plain"),
        pytest.param("ä\u2028", "ä\\u2028", id="separator"),
        pytest.param("a\n\x1b[0m", "a\\n\\x1b[0m", id="control"),
        pytest.param(os.fsdecode(b"a\xff"), "a\N{REPLACEMENT CHARACTER}", id="not UTF-8"),
    ],
)
def test_whatever_is_printed_stays_on_its_line(text: str, printed: str) -> None:
    assert failure.shown(text) == printed
