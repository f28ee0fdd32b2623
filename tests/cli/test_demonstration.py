"""The story of `omnibridge demo`, on fake nodes in the place of the mesh."""

from __future__ import annotations

import asyncio
import re
import subprocess
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from signal import SIGKILL

import grpc
import pytest
import typer

from omninode.bridge.orchestrator.v1 import orchestrator_pb2
from omninode.bridge.reducer.v1 import aggregation_pb2 as pb
from omninode.bridge.stamping.v1 import stamping_pb2
from services.chassis.errors import BridgeError, FailedPrecondition, Unavailable
from services.chassis.keeper import Died, Healthy, Report, Started
from services.cli import crash, demonstration, report, workflow
from services.cli.crash import check_ledger
from services.cli.failure import CommandError
from services.cli.mesh import NodeAddress
from services.cli.runner import unless_stopped
from services.cli.tampering import Tampering
from services.cli.tree import File
from services.cli.workflow import Completed
from tests.cli.conftest import Ended, Run
from tests.cli.fake import FakeStamping, serving
from tests.cli.fake_orchestrator import FakeOrchestrator
from tests.cli.fake_reducer import FakeReducer

Demo = Callable[..., Ended]


class _CountingReducer(FakeReducer):
    """Its session of the mesh has counted the workflows that have ended, but for some."""

    def __init__(self, orchestrator: FakeOrchestrator) -> None:
        super().__init__()
        self.orchestrator = orchestrator
        self.uncounted = 0

    def GetSession(self, request: pb.GetSessionRequest, context: grpc.ServicerContext) -> pb.GetSessionResponse:
        workflows = self.orchestrator.workflows.values()
        ended = sum(workflow.state == orchestrator_pb2.WORKFLOW_STATE_COMPLETED for workflow in workflows)
        self.sessions = [pb.Session(session="workflows", item_count=ended - self.uncounted)]
        return super().GetSession(request, context)


class _Mesh:
    """Stands in for the supervisor: it runs the fake nodes, and is asked to stop when `stop` is set.

    Each node has a process that does nothing, to be killed in the node's place; the orchestrator is away for some calls then.
    """

    def __init__(self) -> None:
        self.node = FakeStamping()
        self.orchestrator = FakeOrchestrator(self.node)
        self.reducer = _CountingReducer(self.orchestrator)
        self.stop = threading.Event()
        self.running = False
        self.mends = True
        self.killed: list[str] = []
        self.on_end: Callable[[], None] = lambda: None

    async def wait(self) -> None:
        await asyncio.to_thread(self.stop.wait)

    @asynccontextmanager
    async def __call__(
        self, _verb: str, addresses: Sequence[NodeAddress], _data: Path, _url: str | None, report: Report
    ) -> AsyncIterator[_Mesh]:
        ports = {address.node: address.port for address in addresses}
        async with AsyncExitStack() as running:
            running.enter_context(serving(self.node, ports["stamping"]))
            running.enter_context(serving(self.orchestrator, ports["orchestrator"]))
            running.enter_context(serving(self.reducer, ports["reducer"]))
            for name in ports:
                await running.enter_async_context(self._process(name, report))
            self.running = True
            try:
                yield self
            finally:
                self.running = False
                self.stop.set()
                self.on_end()

    @asynccontextmanager
    async def _process(self, name: str, report: Report) -> AsyncIterator[None]:
        process = subprocess.Popen(["sleep", "60"])  # noqa: ASYNC220 (its start takes a millisecond)
        report(Started(name, process.pid))
        report(Healthy(name, 0.1))
        watching = asyncio.create_task(self._watch(name, process, report))
        try:
            yield
        finally:
            process.terminate()
            await watching

    async def _watch(self, name: str, process: subprocess.Popen[bytes], report: Report) -> None:
        if await asyncio.to_thread(process.wait) != -SIGKILL:
            return
        self.killed.append(name)
        report(Died(name, -SIGKILL, ()))
        self.orchestrator.outages["GetWorkflow"] = 3
        if self.mends:
            report(Healthy(name, 0.1))


@pytest.fixture
def mesh(monkeypatch: pytest.MonkeyPatch) -> _Mesh:
    """What `demo` starts instead of a mesh."""
    stand_in = _Mesh()
    monkeypatch.setattr(demonstration, "mesh", stand_in)
    monkeypatch.setattr(workflow, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(crash, "COUNT_SECONDS", 1.0)
    return stand_in


@pytest.fixture
def demo(run: Run, mesh: _Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Demo:
    """Runs the story, and sees to it that it leaves nothing behind and the folder as it was."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))

    def tell(folder: Path, *options: str) -> Ended:
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        ended = run("demo", folder, *options)
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
        assert list(temporary.iterdir()) == []
        assert not mesh.running
        return ended

    return tell


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an ignored file."""
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / ".gitignore").write_bytes(b"*.tmp\n")
    (folder / "a.tmp").write_bytes(b"ignored")
    (folder / "deep" / "b.json").write_bytes(b"{}")
    (folder / "deep" / "c.txt").write_bytes(b"third\n")
    return folder


def test_a_copy_is_stamped_and_validated_and_a_changed_byte_is_caught(demo: Demo, mesh: _Mesh, folder: Path) -> None:
    ended = demo(folder)

    assert ended.status == 0
    for line in (
        f"{folder}: 3 files, 14 B, copied to a temporary folder",
        "1 workflow ended in ",
        "acknowledged: 2 further workflows",
        "kill -9 of the orchestrator node, pid ",
        "the orchestrator node is back, and 2 workflows ended after the kill",
        "COMPLETED: every one of 3 workflows, in ",
        "the ledger holds 3 stamps for 3 distinct contents: nothing is lost, nothing doubled",
        "the session workflows counted 3 workflows: each once",
        "stamped: 3 files, 14 B",
        "validated: 2 valid, 0 invalid, 1 stamped detached, 0 without a stamp",
        "changed one byte of .gitignore: byte 77, 'p' to 'P'",
        "caught: the stamp in line 1 declares ",
        "the mesh has stopped, the temporary folders are removed",
    ):
        assert line in ended.out
    assert mesh.killed == ["orchestrator"]


def test_a_workflow_that_is_not_counted_fails(demo: Demo, mesh: _Mesh, folder: Path) -> None:
    mesh.reducer.uncounted = 1

    ended = demo(folder)

    assert ended.status == 1
    assert "of 3 workflows that ended the session workflows counted 2" in ended.err


@pytest.mark.parametrize("count", [1, 20])
def test_a_node_is_killed_when_half_have_ended_and_the_other_half_is_taken_in(
    demo: Demo, mesh: _Mesh, tmp_path: Path, count: int
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:02}").write_bytes(b"%d\n" % (number // 2))

    ended = demo(folder, "--kill", "store")

    assert ended.status == 0
    assert mesh.killed == ["store"]
    further = report.counted(count - count // 2, "further workflow")
    rest = further.replace("further ", "")
    assert re.search(rf"^acknowledged: {further}\nkill -9 of the store node, pid \d+$", ended.out, re.MULTILINE)
    assert f"the store node is back, and {rest} ended after the kill" in ended.out
    contents = report.counted((count + 1) // 2, "distinct content")
    assert f" for {contents}: nothing is lost, nothing doubled" in ended.out
    assert re.search(rf"text/plain +{count} +.* +{(count + 1) // 2} ", ended.out)
    assert "died" not in ended.err


def test_a_file_that_is_too_large_for_a_workflow_is_stamped_by_stream(demo: Demo, mesh: _Mesh, folder: Path) -> None:
    (folder / "large.bin").write_bytes(bytes(11 * 1024 * 1024))
    (folder / "larger than it looks.bin").write_bytes(bytes(10 * 1024 * 1024 + 1))

    ended = demo(folder)

    assert ended.status == 0
    assert "COMPLETED: every one of 3 workflows, in " in ended.out
    assert "too large for a workflow, and stamped by stream: 2 files" in ended.out
    assert "stamped: 5 files" in ended.out
    assert len(mesh.node.streams) == 2


def test_a_folder_of_large_files_is_stamped_without_a_workflow(demo: Demo, mesh: _Mesh, tmp_path: Path) -> None:
    folder = tmp_path / "large"
    folder.mkdir()
    (folder / "large.bin").write_bytes(bytes(11 * 1024 * 1024))

    ended = demo(folder)

    assert ended.status == 0
    assert "no file here is small enough for a workflow: no node is killed" in ended.out
    assert "stamped: 1 file, 11.0 MiB" in ended.out
    assert mesh.killed == []


def test_an_unknown_node_cannot_be_killed(demo: Demo, folder: Path) -> None:
    ended = demo(folder, "--kill", "bogus")

    assert ended.status == 2
    assert "there is no node 'bogus'; there are: stamping, store, reducer, orchestrator" in ended.err


def test_a_node_that_does_not_come_back_fails(
    demo: Demo, mesh: _Mesh, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mesh.mends = False
    monkeypatch.setattr(crash, "MEND_SECONDS", 0.05)

    ended = demo(folder)

    assert ended.status == 1
    assert "demo: the orchestrator node was not healthy again within 0.05 s" in ended.err


def test_a_workflow_that_failed_is_named_and_fails_the_demo(demo: Demo, mesh: _Mesh, folder: Path) -> None:
    mesh.orchestrator.failures["deep/c.txt"] = FailedPrecondition("odd")

    ended = demo(folder)

    assert ended.status == 1
    assert re.search(r"deep/c\.txt: FAILED_PRECONDITION: workflow \S+ failed: odd\n", ended.err)
    assert "demo: 1 path failed\n" in ended.err


class _Ledger:
    """The one method that the count asks for."""

    def __init__(self, digests: Sequence[str]) -> None:
        self._digests = digests

    async def ListStamps(self, _: object) -> stamping_pb2.ListStampsResponse:
        return stamping_pb2.ListStampsResponse(stamps=[stamping_pb2.Stamp(digest=digest) for digest in self._digests])


@pytest.mark.parametrize(
    ("held", "complaint"),
    [
        pytest.param("ab", None, id="each once"),
        pytest.param("a", "1 stamps are lost, 0 doubled, 0 nobody's", id="lost"),
        pytest.param("abb", "0 stamps are lost, 1 doubled, 0 nobody's", id="doubled"),
        pytest.param("abc", "0 stamps are lost, 0 doubled, 1 nobody's", id="foreign"),
    ],
)
async def test_a_ledger_that_differs_from_the_workflows_is_told(held: str, complaint: str | None) -> None:
    completed = [
        Completed(File(Path(name), name, 1), orchestrator_pb2.Workflow(stamp=stamping_pb2.Stamp(digest=digest)))
        for name, digest in (("1", "a"), ("2", "b"), ("3", "b"))
    ]
    counted = check_ledger(_Ledger(held), completed)  # type: ignore[arg-type]  # it stands in for a stub

    if complaint is None:
        await counted
    else:
        with pytest.raises(CommandError, match=complaint):
            await counted


def test_a_folder_that_can_hold_no_stamp_shows_the_detached_case(demo: Demo, tmp_path: Path) -> None:
    folder = tmp_path / "binary"
    folder.mkdir()
    (folder / "empty.json").write_bytes(b"")
    (folder / "x.bin").write_bytes(b"\0\1")

    ended = demo(folder)

    assert ended.status == 0
    assert "no file here has both an embedded stamp and a letter to change beside it" in ended.out
    assert "changed one byte of x.bin: byte 1, '\\x01' to '\\x00'" in ended.out
    assert "caught: the ledger does not know " in ended.out


def test_a_folder_without_letters_and_detached_content_has_no_byte_to_change(demo: Demo, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    (folder / "a.json").write_bytes(b"")
    (folder / "digits.txt").write_bytes(b"1\n")

    ended = demo(folder)

    assert ended.status == 0
    assert "no file here has a byte to change without its stamp" in ended.out


def test_a_folder_without_files_fails(demo: Demo, tmp_path: Path) -> None:
    folder = tmp_path / "nothing"
    folder.mkdir()

    ended = demo(folder)

    assert ended.status == 1
    assert ended.err == f"omnibridge: demo: {folder}: there is no file to stamp\n"


@pytest.mark.parametrize(
    ("method", "error", "line"),
    [
        pytest.param("BatchCreateStamps", Unavailable("gone"), "stamping: UNAVAILABLE: gone", id="stamping"),
        pytest.param("ValidateStamp", FailedPrecondition("odd"), "demo: 3 paths failed", id="validating"),
    ],
)
def test_what_fails_is_said_and_nothing_is_left_behind(
    demo: Demo, mesh: _Mesh, folder: Path, *, method: str, error: BridgeError, line: str
) -> None:
    mesh.node.refusals[method] = error

    ended = demo(folder)

    assert ended.status == 1
    assert line in ended.err.splitlines()[-1]


def test_a_byte_that_is_not_caught_fails(
    demo: Demo, mesh: _Mesh, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demonstration, "change_letter", lambda _, stamped: Tampering(stamped, 0, "a", "a"))

    ended = demo(folder)

    assert ended.status == 1
    assert ended.err.splitlines()[-1] == "omnibridge: demo: the changed byte of .gitignore was not caught"


def test_a_stop_in_the_middle_leaves_nothing_behind(demo: Demo, mesh: _Mesh, folder: Path) -> None:
    stopped = threading.Event()

    def stop() -> None:
        mesh.stop.set()
        # The answer comes only when the command has left.
        stopped.wait(5)

    mesh.node.on_batch = stop
    mesh.on_end = stopped.set

    ended = demo(folder)

    assert ended.status == 130
    assert "omnibridge:" not in ended.err
    assert "stamped:" not in ended.out


async def test_work_ends_with_its_result_or_with_the_stop() -> None:
    mesh = _Mesh()
    cancelled = asyncio.Event()

    async def endless() -> None:
        mesh.stop.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def quick() -> str:
        return "done"

    async with asyncio.timeout(5):
        assert await unless_stopped(mesh, quick()) == "done"  # type: ignore[arg-type]  # it stands in for a supervisor
        with pytest.raises(typer.Exit):
            await unless_stopped(mesh, endless())  # type: ignore[arg-type]  # likewise
    assert cancelled.is_set()
