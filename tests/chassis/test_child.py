"""Children end with their parent, however it goes; by the kernel's watch on Linux, by the guard everywhere."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.chassis import child
from services.chassis.child import Child, Identity
from services.chassis.launcher import CAP_DAC_READ_SEARCH
from tests.chassis.process import BOUND, ended, runs, started, until

LINUX = sys.platform == "linux"
WATCHES = [
    pytest.param(False, id="kernel", marks=pytest.mark.skipif(not LINUX, reason="PR_SET_PDEATHSIG is Linux's")),
    pytest.param(True, id="guard"),
]
NOBODY = 65534
AS_ROOT = pytest.mark.skipif(not LINUX or os.geteuid() != 0, reason="changes the user")

ANNOUNCE = "import os, signal, sys, time; {prelude}; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(1000)"
PARENT = """
import signal, sys
from services.chassis import child
from services.chassis.child import Identity
guarded, fields, *program = sys.argv[1:]
identity = None if fields == "None" else Identity(*eval(fields))
print("child", child.spawn(program, guarded=guarded == "True", identity=identity).pid)
signal.pause()
"""


def announcer(prelude: str, file: Path) -> list[str]:
    """A program that writes its pid to the file, once it has run the prelude, and then only waits."""
    return [sys.executable, "-I", "-S", "-c", ANNOUNCE.format(prelude=prelude), str(file)]


def announced(file: Path) -> int:
    assert until(lambda: file.exists() and file.read_text())
    return int(file.read_text())


@pytest.fixture
def stopping() -> Iterator[list[Child]]:
    children: list[Child] = []
    yield children
    for running in children:
        running.stop(())


@pytest.mark.parametrize("guarded", WATCHES)
@pytest.mark.parametrize(
    "identity",
    [
        None,
        # A change of credentials clears PR_SET_PDEATHSIG.
        pytest.param((NOBODY, NOBODY), id="another user", marks=AS_ROOT),
        pytest.param((NOBODY, NOBODY, True), id="another user that reads all", marks=AS_ROOT),
    ],
)
def test_a_child_ends_when_its_parent_is_killed(guarded: bool, identity: tuple[int, ...] | None) -> None:
    # Not the interpreter of the tests: another user might not be able to run it.
    program = ["/bin/sh", "-c", 'echo "program $$"; exec sleep 1000']
    with started("-c", PARENT, str(guarded), repr(identity), *program) as parent:
        assert parent.stdout is not None
        pids = {name: int(pid) for name, pid in (next(parent.stdout).split() for _ in range(2))}
        assert (pids["program"] != pids["child"]) == guarded
        assert runs(pids["program"])
        parent.kill()
        assert ended(pids["program"])
        assert ended(pids["child"])


def test_a_guard_kills_a_child_that_does_not_end_with_its_parent(tmp_path: Path) -> None:
    program = announcer("signal.signal(signal.SIGTERM, signal.SIG_IGN)", tmp_path / "pid")
    impatient = "from services.chassis import child; child.PATIENCE = 0.1"
    with started("-c", f"{impatient}\n{PARENT}", "True", "None", *program) as parent:
        pid = announced(tmp_path / "pid")
        parent.kill()
        assert ended(pid)


@pytest.mark.parametrize("guarded", WATCHES)
@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("raise SystemExit(3)", 3),
        ("import os; os.kill(os.getpid(), 9)", -9),
        ("import os; os.kill(os.getpid(), 15)", -15),
    ],
    ids=["exits", "is killed", "is terminated"],
)
def test_the_status_is_the_programs_own(guarded: bool, code: str, status: int) -> None:
    assert child.spawn([sys.executable, "-I", "-S", "-c", code], guarded=guarded).wait(BOUND) == status


@pytest.mark.parametrize("guarded", WATCHES)
def test_a_signal_reaches_the_program(tmp_path: Path, guarded: bool) -> None:
    prelude = "signal.signal(signal.SIGINT, lambda *_: sys.exit(7))"
    running = child.spawn(announcer(prelude, tmp_path / "pid"), guarded=guarded)
    announced(tmp_path / "pid")
    running.signal(signal.SIGINT)
    assert running.wait(BOUND) == 7


@pytest.mark.parametrize("guarded", WATCHES)
def test_stopping_kills_a_program_that_ignores_the_asking(tmp_path: Path, guarded: bool) -> None:
    running = child.spawn(announcer("signal.signal(signal.SIGTERM, signal.SIG_IGN)", tmp_path / "pid"), guarded=guarded)
    pid = announced(tmp_path / "pid")
    assert running.stop(((signal.SIGTERM, 0.05),)) == -signal.SIGKILL
    assert ended(pid)


def test_a_killed_guard_takes_its_program_with_it(tmp_path: Path, stopping: list[Child]) -> None:
    running = child.spawn(announcer("pass", tmp_path / "pid"), guarded=True)
    stopping.append(running)
    pid = announced(tmp_path / "pid")
    os.kill(running.pid, signal.SIGKILL)
    assert running.wait(BOUND) == -signal.SIGKILL
    assert ended(pid)


def test_what_a_child_leaves_in_its_group_ends_with_it(tmp_path: Path) -> None:
    leaves = f"import subprocess; subprocess.Popen({announcer('pass', tmp_path / 'pid')!r}); import os, time\n"
    waits = f"while not os.path.exists(f := {str(tmp_path / 'pid')!r}) or not os.path.getsize(f): time.sleep(0.01)"
    assert child.spawn([sys.executable, "-I", "-c", leaves + waits]).wait(BOUND) == 0
    assert ended(announced(tmp_path / "pid"))


@pytest.mark.parametrize("guarded", WATCHES)
def test_a_child_has_a_session_of_its_own(stopping: list[Child], guarded: bool) -> None:
    running = child.spawn(["/bin/sleep", "1000"], guarded=guarded)
    stopping.append(running)
    assert os.getsid(running.pid) == running.pid != os.getsid(0)


@pytest.mark.parametrize("guarded", WATCHES)
def test_an_ignored_signal_is_not_inherited(tmp_path: Path, guarded: bool) -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        running = child.spawn(announcer("pass", tmp_path / "pid"), guarded=guarded)
    finally:
        signal.signal(signal.SIGTERM, before)
    announced(tmp_path / "pid")
    assert running.stop(((signal.SIGTERM, BOUND),)) == -signal.SIGTERM


def test_waiting_has_a_bound(stopping: list[Child]) -> None:
    stopping.append(child.spawn(["/bin/sleep", "1000"]))
    assert stopping[0].wait(0.01) is None
    assert stopping[0].status is None


@pytest.mark.parametrize("guarded", WATCHES)
def test_a_program_that_is_not_there_says_so(guarded: bool) -> None:
    status, output = child.run(["/no/such/program"], guarded=guarded)
    assert status > 0
    assert output.startswith("/no/such/program: ")
    assert "No such file" in output
    assert len(output.splitlines()) == 1


def test_running_a_program_gives_all_that_it_wrote() -> None:
    assert child.run(["/bin/sh", "-c", "echo out; echo err >&2; exit 4"]) == (4, "out\nerr\n")


@pytest.mark.skipif(not LINUX, reason="elsewhere nothing is tied to the thread")
def test_spawning_in_another_thread_is_refused() -> None:
    refusals: list[RuntimeError] = []

    def spawn() -> None:
        try:
            child.spawn(["/bin/sleep", "1000"])
        except RuntimeError as error:
            refusals.append(error)

    thread = threading.Thread(target=spawn)
    thread.start()
    thread.join()
    assert "main thread" in str(refusals[0])


async def test_a_cancelled_wait_leaves_the_child_alone(stopping: list[Child]) -> None:
    running = child.spawn(["/bin/sleep", "1000"])
    stopping.append(running)
    waiting = asyncio.create_task(running.ended())
    await asyncio.wait({waiting}, timeout=0)
    waiting.cancel()
    await asyncio.wait({waiting})
    assert runs(running.pid)
    running.signal(signal.SIGTERM)
    assert await asyncio.wait_for(running.ended(), BOUND) == -signal.SIGTERM


@AS_ROOT
def test_another_user_reads_all_with_that_one_capability_and_writes_nothing(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    secret = tmp_path / "secret"
    secret.write_text("read")
    secret.chmod(0o600)
    program = [
        "/bin/sh",
        "-c",
        f'cat "{secret}"; id -u; id -G; grep ^Cap /proc/self/status; echo written 2>/dev/null > "{secret}"',
    ]
    _, output = child.run(program, identity=Identity(NOBODY, NOBODY, capability=CAP_DAC_READ_SEARCH))
    only = f"{1 << 2:016x}"
    first, *fields = output.replace("\t", " ").splitlines()
    assert first == f"read{NOBODY}"
    assert fields[0] == str(NOBODY)
    held = dict(line.split(": ") for line in fields if line.startswith("Cap"))
    assert {held[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {only}
    assert secret.read_text() == "read"


@AS_ROOT
def test_another_user_has_no_capability_unless_it_is_given(tmp_path: Path) -> None:
    _, output = child.run(["/bin/grep", "CapEff", "/proc/self/status"], identity=Identity(NOBODY, NOBODY))
    assert output.split() == ["CapEff:", "0" * 16]


@pytest.mark.parametrize(
    ("status", "words"), [(0, "exit status 0"), (3, "exit status 3"), (-9, "signal 9 (SIGKILL)"), (-99, "signal 99")]
)
def test_a_status_is_described_in_words(status: int, words: str) -> None:
    assert child.describe(status) == words
