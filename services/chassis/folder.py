"""The data folder of a mesh on one machine: its layout, its lock and its logs.

    postgres/         the embedded cluster
    log/              a file a process, the one before it as .1
    supervisor.lock   held with flock by whoever runs the folder: JSON with its pid and ports

What runs in the folder is embedded.py's and supervisor.py's; their errors are here because they share one kind.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

LOG_BYTES = 10 * 1024 * 1024
"""A log larger than this is put aside before its process starts again: a crash loop fills no disk."""
LAST_BYTES = 4096
"""How much of a log's end is read to say why a process ended."""
HARMLESS = "lost+found"
"""What a freshly made file system holds: no reason to refuse the folder that it is mounted on."""


class MeshError(RuntimeError):
    """Why the mesh cannot run on this machine: one line, for whoever started it."""


class FolderRefused(MeshError):
    """The folder cannot hold the data."""


class FolderInUse(MeshError):
    """Another supervisor runs this folder."""

    def __init__(self, folder: Path, holder: Holder | None) -> None:
        self.folder, self.holder = folder, holder
        super().__init__(f"{folder} is in use by {holder or 'another process'}")


@dataclass(frozen=True, slots=True)
class Holder:
    """Who wrote a lock file."""

    pid: int
    ports: tuple[int, ...]

    def __str__(self) -> str:
        ports = f" (ports {', '.join(map(str, self.ports))})" if self.ports else ""
        return f"the mesh of pid {self.pid}{ports}"

    @property
    def alive(self) -> bool:
        """Whether its process still runs (or another that was given its pid)."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True

    def is_another(self) -> bool:
        """Whether it is a living process other than this one."""
        return self.pid != os.getpid() and self.alive


class Log:
    """One process's log file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._begin = 0

    def open(self) -> BinaryIO:
        """Open it for a new process to append to; what it held stays, or is put aside when it is large.

        Raises FolderRefused when it cannot be written.
        """
        try:
            self.path.parent.mkdir(exist_ok=True)
            file = self._with_room().open("ab")
        except OSError as error:
            raise FolderRefused(f"{self.path} cannot be written: {error.strerror}") from error
        self._begin = file.tell()
        return file

    def _with_room(self) -> Path:
        if self.path.exists() and self.path.stat().st_size > LOG_BYTES:
            self.path.replace(self.path.with_name(f"{self.path.name}.1"))
        return self.path

    def last_lines(self, count: int = 3) -> tuple[str, ...]:
        """The last lines written since it was opened, without empty ones."""
        with contextlib.suppress(FileNotFoundError), self.path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self._begin, size - LAST_BYTES))
            return last_lines(file.read().decode(errors="replace"), count)
        return ()


class DataFolder:
    """The folder at `path`, made when it is first locked."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().resolve()
        self.postgres = self.path / "postgres"
        self._lock_file = self.path / "supervisor.lock"

    def log(self, name: str) -> Log:
        """The log of the process called `name`."""
        return Log(self.path / "log" / f"{name}.log")

    @contextlib.contextmanager
    def lock(self, ports: Sequence[int] = ()) -> Iterator[None]:
        """Hold the folder alone; it is free again when this process ends, however it ends.

        Raises FolderInUse when another holds it, FolderRefused when it cannot be written or holds something else.
        """
        try:
            lock = self._open_lock()
        except OSError as error:
            raise FolderRefused(f"{self.path} cannot hold the data: {error.strerror}") from error
        try:
            self._claim(lock, ports)
            yield
        finally:
            os.close(lock)

    def holder(self) -> Holder | None:
        """Who last locked the folder; None when nobody did, or it cannot be read."""
        try:
            written = json.loads(self._lock_file.read_bytes())
            return Holder(int(written["pid"]), tuple(int(port) for port in written["ports"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _open_lock(self) -> int:
        self.path.mkdir(parents=True, exist_ok=True)
        if self._holds_something_else():
            raise FolderRefused(f"{self.path} is neither empty nor a data folder of this program")
        return os.open(self._lock_file, os.O_RDWR | os.O_CREAT, 0o644)

    def _claim(self, lock: int, ports: Sequence[int]) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.truncate(lock, 0)
            os.pwrite(lock, json.dumps({"pid": os.getpid(), "ports": list(ports)}).encode(), 0)
        except BlockingIOError:
            raise FolderInUse(self.path, self.holder()) from None
        except OSError as error:
            raise FolderRefused(f"{self._lock_file} cannot be written: {error.strerror}") from error

    def _holds_something_else(self) -> bool:
        if self._lock_file.exists() or self.postgres.exists():
            return False
        return any(not entry.name.startswith(".") and entry.name != HARMLESS for entry in self.path.iterdir())


def last_lines(text: str, count: int = 3) -> tuple[str, ...]:
    """The last `count` lines of a program's output that are not empty."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())[-count:]
