"""The embedded PostgreSQL: a server that is a child of this process, on a unix socket that only its user can reach.

It is for one machine and needs nothing installed. The cluster on disk is cluster.py's, the folder and its lock are folder.py's, the
account under root is account.py's; starting it again when it dies is supervisor.py's.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias
from urllib.parse import quote

from services.chassis import account, child
from services.chassis.child import GUARDED, Child, Identity, Steps
from services.chassis.cluster import ENVIRONMENT, SUPERUSER, Cluster, installation
from services.chassis.folder import DataFolder, MeshError, last_lines

Report: TypeAlias = Callable[[str], None]
DATABASE = "omnibridge"
CREATE_DATABASE = r"""
    SELECT format('CREATE DATABASE %I', :'database') WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'database') \gexec
"""
PORT = 5432
"""No TCP port: the number in the socket's name. It is stated everywhere because a PGPORT in the environment would change it."""
SOCKET_FILES = (f".s.PGSQL.{PORT}", f".s.PGSQL.{PORT}.lock", "data")
PREFIX = "omnibridge-pg-"
PATH_BYTES = 103
"""The longest path of a unix socket that every platform takes (macOS: 104 with its NUL)."""
POLL_SECONDS = 0.02
STILL_IN_USE = "is still in use"
"""What a server says when processes of the one before it have not ended yet."""


class PostgresFailed(MeshError):
    """The server ended, or never came to answer."""


class PostgresBusy(PostgresFailed):
    """Processes of a server that was killed still hold the cluster; they end by themselves, so try again."""


def silent(_: str) -> None:
    """No progress report."""


class EmbeddedPostgres:
    """The server of the data folder `data`. As a context manager it holds the folder's lock and answers inside.

    Else the caller holds the lock and calls `prepare`, `spawn` and `wait_ready` in this order, the last two again after the server
    has ended, and `stop` at last. All of them raise MeshError; `prepare` and `wait_ready` block, for any thread.
    """

    def __init__(
        self,
        data: Path,
        *,
        max_connections: int = 100,
        durable: bool = True,
        stop_seconds: float = 30.0,
        progress_seconds: float = 2.0,
        guarded: bool = GUARDED,
    ) -> None:
        """`durable=False` (tests) never syncs: a crash of the machine may spoil the data, a crash of the server does not.

        `stop_seconds` bounds a clean stop; past it the server is stopped at once and recovers at its next start.
        """
        self.folder = DataFolder(data)
        self.stop_steps: Steps = ((signal.SIGINT, stop_seconds), (signal.SIGQUIT, 5.0))
        """A fast shutdown, then an immediate one."""
        self._max_connections, self._durable = max_connections, durable
        self._progress_seconds, self._guarded = progress_seconds, guarded
        self._installed = installation()
        self._cluster = Cluster(self.folder.postgres, self._installed)
        self.log = self.folder.log("postgres")
        self._halt = threading.Event()
        self._held = contextlib.ExitStack()
        self._identity: Identity | None = None
        self._socket: Path | None = None
        self._child: Child | None = None

    @property
    def url(self) -> str:
        """The database's URL, the same over every start until `stop`."""
        assert self._socket is not None, "prepare comes first"
        return f"postgresql://{SUPERUSER}@/{DATABASE}?host={quote(str(self._socket))}&port={PORT}"

    @property
    def pid(self) -> int | None:
        """The server's own pid while it runs."""
        return self._cluster.postmaster_pid() if self._child and self._child.status is None else None

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            undo.enter_context(self.folder.lock())
            undo.callback(self.stop)
            self.prepare()
            self.start()
            self._held = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    def prepare(self, report: Report = silent) -> None:
        """Make the cluster if there is none, stop a server that a dead supervisor left, and make the socket's folder.

        A server left behind is stopped and not adopted: it would outlive this process.
        """
        self._halt.clear()
        self._identity = self._reaching_identity()
        self._cluster.ensure(self._identity, durable=self._durable)
        self._stop_leftover(report)
        for folder, data in _socket_folders():
            holder = DataFolder(data).holder()
            if data == self.folder.path or holder is None or not holder.alive:
                _remove(folder)
        self._socket = _make_socket_folder(self.folder.path, self._identity)

    def spawn(self) -> Child:
        """Start the server; in the main thread (see child.spawn)."""
        assert self._socket is not None, "prepare comes first"
        stale = self._cluster.postmaster_pid()
        # PostgreSQL refuses to start while the pid in a stale lock file is any process of its user, but for this one (meant for
        # pg_ctl). Its check of the shared memory, which the file also names, stays.
        env = ENVIRONMENT if stale is None else {**ENVIRONMENT, "PG_GRANDPARENT_PID": str(stale)}
        with self.log.open() as output:
            self._child = child.spawn(
                self._command(self._socket),
                stop_signal=signal.SIGINT,
                env=env,
                cwd=Path("/"),
                output=output,
                identity=self._identity,
                guarded=self._guarded,
            )
        return self._child

    def wait_ready(self, report: Report = silent) -> None:
        """Block until the server answers and has the database, however long its recovery takes.

        Raises PostgresFailed with the last lines of its log as soon as it ends, or when `stop` is called.
        """
        assert self._child is not None, "spawn comes first"
        progress = self._progress(report, "PostgreSQL is starting")
        while not self._answers(self._child):
            if self._child.wait(POLL_SECONDS) is not None:
                raise self._failure(self._child)
            next(progress)
        self._create_database()

    def start(self, report: Report = silent) -> None:
        """`spawn` and `wait_ready`, again as long as processes of a server that was killed are in the way."""
        while True:
            self.spawn()
            try:
                return self.wait_ready(report)
            except PostgresBusy as error:
                report(str(error))
                time.sleep(POLL_SECONDS)

    def halt(self) -> None:
        """Make a `prepare` or `wait_ready` that runs in another thread give up soon."""
        self._halt.set()

    def stop(self) -> None:
        """Stop the server, cleanly if that takes no longer than the bound, and remove the socket's folder."""
        self.halt()
        if self._child is not None:
            self._child.stop(self.stop_steps)
        if self._socket is not None:
            _remove(self._socket)
            self._socket = None

    def _reaching_identity(self) -> Identity | None:
        identity = account.unprivileged(self._cluster.path)
        if identity is None:
            return None
        share = self._installed.programs.parent / "share"
        return account.reaching(identity, (self._installed.programs, share, self.folder.path, _socket_base()))

    def _stop_leftover(self, report: Report) -> None:
        pid = self._cluster.postmaster_pid()
        if pid is None or not self._cluster.runs(pid):
            return
        report(f"stopping PostgreSQL (pid {pid}), left by a supervisor that was killed")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGINT)
        progress = self._progress(report, f"PostgreSQL (pid {pid}) is shutting down")
        while self._cluster.runs(pid):
            next(progress)
            self._halt.wait(POLL_SECONDS)

    def _progress(self, report: Report, what: str) -> Iterator[None]:
        """At each step: report when it is time to; PostgresFailed once a stop is asked for."""
        began = reported = time.monotonic()
        while True:
            if self._halt.is_set():
                raise PostgresFailed(f"{what}: given up, because a stop was asked for")
            now = time.monotonic()
            if now - reported >= self._progress_seconds:
                reported = now
                report(": ".join((f"{what} ({now - began:.0f} s)", *self.log.last_lines(1))))
            yield

    def _answers(self, server: Child) -> bool:
        """Whether the lock file says ready and is this very server's: a stale one says so too."""
        pid = self._cluster.postmaster_pid()
        try:
            return pid is not None and os.getpgid(pid) == server.pid and self._cluster.is_ready()
        except ProcessLookupError:
            return False

    def _failure(self, server: Child) -> PostgresFailed:
        lines = self.log.last_lines(6)
        kind = PostgresBusy if any(STILL_IN_USE in line for line in lines) else PostgresFailed
        return kind(
            f"PostgreSQL did not start ({child.describe(server.status or 0)}): {'; '.join(lines) or 'its log is empty'}"
        )

    def _command(self, socket: Path) -> list[str]:
        settings = {
            "listen_addresses": "",
            "port": PORT,
            "unix_socket_directories": '"{}"'.format(str(socket).replace('"', '""')),
            "unix_socket_permissions": "0700",
            "max_connections": self._max_connections,
            "shared_buffers": "128MB",
            "timezone": "UTC",
            "log_timezone": "UTC",
            **({} if self._durable else {"fsync": "off", "full_page_writes": "off"}),
        }
        flags = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [self._installed.program("postgres"), "-D", str(self._cluster.path), *flags]

    def _create_database(self) -> None:
        address = ["-h", str(self._socket), "-p", str(PORT), "-U", SUPERUSER, "-d", SUPERUSER]
        done = subprocess.run(
            [
                self._installed.program("psql"),
                "-XqAtw",
                "-v",
                "ON_ERROR_STOP=1",
                "-v",
                f"database={DATABASE}",
                *address,
            ],
            input=CREATE_DATABASE,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise PostgresFailed(f"the database {DATABASE} could not be made: {'; '.join(last_lines(done.stderr))}")


def neighbours() -> Iterator[DataFolder]:
    """The data folders of this user's embedded servers on this machine, those of killed supervisors among them."""
    for _, data in _socket_folders():
        yield DataFolder(data)


def _socket_base() -> Path:
    """The temporary folder, or the system's own where that one's path is too long for a socket."""
    base = Path(tempfile.gettempdir())
    longest = base / f"{PREFIX}xxxxxxxx" / SOCKET_FILES[0]
    return base if len(os.fsencode(longest)) <= PATH_BYTES else Path("/tmp")  # noqa: S108 (mkdtemp makes a private folder in it)


def _make_socket_folder(data: Path, identity: Identity | None) -> Path:
    """A private folder with the socket to be and a link to the data, by which a later start knows whose it was."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=_socket_base()))
        (folder / "data").symlink_to(data)
        if identity is not None:
            os.chown(folder, identity.uid, identity.gid)
    except OSError as error:
        raise MeshError(f"no folder for PostgreSQL's socket in {_socket_base()}: {error.strerror}") from error
    return folder


def _socket_folders() -> Iterator[tuple[Path, Path]]:
    for folder in _socket_base().glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            # Anyone can make a folder of this name; the link is believed only where this user made it.
            if (folder / "data").lstat().st_uid == os.geteuid():
                yield folder, (folder / "data").readlink()


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError):
        for name in SOCKET_FILES:
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()
