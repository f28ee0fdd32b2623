"""The story of `omnibridge demo`, on a fake node in the place of the mesh."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

from services.chassis.errors import BridgeError, FailedPrecondition, Unavailable
from services.cli import demonstration
from services.cli.demonstration import change_last, change_letter
from services.cli.mesh import NodeAddress
from services.cli.runner import unless_stopped
from tests.cli.conftest import Ended, Run
from tests.cli.fake import MARK, FakeStamping, serving

Demo = Callable[[Path], Ended]


class _Mesh:
    """Stands in for the supervisor: it runs the fake node, and is asked to stop when `stop` is set."""

    def __init__(self) -> None:
        self.node = FakeStamping()
        self.stop = threading.Event()
        self.running = False
        self.on_end: Callable[[], None] = lambda: None

    async def wait(self) -> None:
        await asyncio.to_thread(self.stop.wait)

    @asynccontextmanager
    async def __call__(self, _verb: str, addresses: Sequence[NodeAddress], *_: object) -> AsyncIterator[_Mesh]:
        with serving(self.node, addresses[0].port):
            self.running = True
            try:
                yield self
            finally:
                self.running = False
                self.stop.set()
                self.on_end()


@pytest.fixture
def mesh(monkeypatch: pytest.MonkeyPatch) -> _Mesh:
    """What `demo` starts instead of a mesh."""
    stand_in = _Mesh()
    monkeypatch.setattr(demonstration, "mesh", stand_in)
    return stand_in


@pytest.fixture
def demo(run: Run, mesh: _Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Demo:
    """Runs the story, and sees to it that it leaves nothing behind and the folder as it was."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))

    def tell(folder: Path) -> Ended:
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        ended = run("demo", folder)
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


def test_a_copy_is_stamped_and_validated_and_a_changed_byte_is_caught(demo: Demo, folder: Path) -> None:
    ended = demo(folder)

    assert ended.status == 0
    for line in (
        f"{folder}: 3 files, 14 B, copied to a temporary folder",
        "stamped: 3 files, 14 B, ",
        "validated: 2 valid, 0 invalid, 1 stamped detached, 0 without a stamp",
        "changed one byte of .gitignore: byte 77, 'p' to 'P'",
        "caught: the stamp in line 1 declares ",
        "the mesh has stopped, the temporary folders are removed",
    ):
        assert line in ended.out
    assert ended.err == ""


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


def test_a_folder_of_empty_files_has_no_byte_to_change(demo: Demo, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    (folder / "a.json").write_bytes(b"")

    ended = demo(folder)

    assert ended.status == 0
    assert "no file here has a byte to change" in ended.out


def test_a_folder_without_files_fails(demo: Demo, tmp_path: Path) -> None:
    folder = tmp_path / "nothing"
    folder.mkdir()

    ended = demo(folder)

    assert ended.status == 1
    assert ended.err == f"omnibridge: demo: {folder}: there is no file to stamp\n"


@pytest.mark.parametrize(
    ("method", "error", "line"),
    [
        pytest.param("BatchCreateStamps", Unavailable("PostgreSQL is gone"), "no node answers at", id="stamping"),
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
    monkeypatch.setattr(
        demonstration, "change_letter", lambda _, stamped: demonstration.Tampering(stamped, 0, "a", "a")
    )

    ended = demo(folder)

    assert ended.status == 1
    assert ended.err == "omnibridge: demo: the changed byte of .gitignore was not caught\n"


def test_a_stop_in_the_middle_leaves_nothing_behind(demo: Demo, mesh: _Mesh, folder: Path) -> None:
    stopped = threading.Event()

    def stop() -> None:
        mesh.stop.set()
        # The answer comes only when the command has left.
        stopped.wait(5)

    mesh.node.on_batch = stop
    mesh.on_end = stopped.set

    ended = demo(folder)

    assert (ended.status, ended.err) == (130, "")
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


_LINE = b"# ---END ONEX STAMP---\n"


@pytest.mark.parametrize(
    ("original", "stamped", "changed"),
    [
        pytest.param(b"ab\n", MARK + b"\nab\n", MARK + b"\naB\n", id="the last letter"),
        pytest.param(b"a1 +\n", MARK + b"\na1 +\n", MARK + b"\nA1 +\n", id="not the last byte"),
        pytest.param(b"", MARK, None, id="empty"),
        pytest.param(b"12\n", MARK + b"\n12\n", None, id="no letter"),
        pytest.param(b"#!sh", b"#!sh\n" + _LINE, None, id="a stamp at the end"),
        pytest.param(_LINE + b"ab\n", _LINE + b"ab\n", _LINE + b"aB\n", id="stamped before"),
        pytest.param(_LINE, _LINE, None, id="nothing but a stamp"),
    ],
)
def test_the_changed_letter_is_one_of_the_content(original: bytes, stamped: bytes, changed: bytes | None) -> None:
    change = change_letter(original, stamped)

    assert (change and change.content) == changed


@settings(max_examples=100)
@given(head=st.binary(max_size=8), tail=st.binary(max_size=8), block=st.binary(min_size=1, max_size=8))
def test_a_change_is_of_one_byte_of_what_the_two_contents_share(head: bytes, tail: bytes, block: bytes) -> None:
    stamped = head + block + tail

    change = change_letter(head + tail, stamped)

    if change is None:
        assert not any(chr(byte).isascii() and chr(byte).isalpha() for byte in tail)
        return
    differing = [at for at, (a, b) in enumerate(zip(stamped, change.content, strict=True)) if a != b]
    assert differing == [change.offset]
    # From the end, it is where the original has the same byte.
    assert (head + tail)[change.offset - len(stamped)] == stamped[change.offset]


@given(content=st.binary(min_size=1, max_size=8))
def test_a_changed_last_byte_is_another_one(content: bytes) -> None:
    change = change_last(content)

    assert change.content[:-1] == content[:-1]
    assert change.content != content
    assert len(change.content) == len(content)
