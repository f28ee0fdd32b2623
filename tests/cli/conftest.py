"""The command run in this process, against fake nodes."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from services.cli.main import main
from tests.cli.fake import FakeStamping, serving
from tests.cli.fake_orchestrator import FakeOrchestrator
from tests.cli.fake_reducer import FakeReducer
from tests.cli.fake_store import FakeStore


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended, and what it printed."""

    status: int
    out: str
    err: str

    @property
    def records(self) -> list[dict[str, Any]]:
        """The JSON lines of stdout."""
        return [json.loads(line) for line in self.out.splitlines()]


Run = Callable[..., Ended]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command with the given arguments."""

    def run_command(*arguments: str | Path) -> Ended:
        status = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Ended(status, out, err)

    return run_command


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeStamping]:
    """A fake stamping node, at the target that the environment names."""
    servicer = FakeStamping()
    with serving(servicer) as target:
        monkeypatch.setenv("OMNIBRIDGE_STAMPING_TARGET", target)
        yield servicer


@pytest.fixture
def orchestrator(node: FakeStamping, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeOrchestrator]:
    """A fake orchestrator that stamps into the ledger of `node`, at the target that the environment names."""
    servicer = FakeOrchestrator(node)
    with serving(servicer) as target:
        monkeypatch.setenv("OMNIBRIDGE_ORCHESTRATOR_TARGET", target)
        yield servicer


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeStore]:
    """A fake store, at the target that the environment names."""
    servicer = FakeStore()
    with serving(servicer) as target:
        monkeypatch.setenv("OMNIBRIDGE_STORE_TARGET", target)
        yield servicer


@pytest.fixture
def reducer(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeReducer]:
    """A fake reducer, at the target that the environment names."""
    servicer = FakeReducer()
    with serving(servicer) as target:
        monkeypatch.setenv("OMNIBRIDGE_REDUCER_TARGET", target)
        yield servicer


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with text, JSON and a file in a folder."""
    root = tmp_path / "tree"
    (root / "deep").mkdir(parents=True)
    (root / "a.txt").write_bytes(b"first\n")
    (root / "b.json").write_bytes(b"{}")
    (root / "deep" / "c.txt").write_bytes(b"third\n")
    return root


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    """`main` is a process's own and sets its signals; the test run is not that process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
