"""The unprivileged account that PostgreSQL runs as when this process is root, and what that account can reach.

PostgreSQL refuses to run as root. No account is ever made: `postgres` is taken where it exists, else `nobody`. The capability to
read everything, given only where a folder is closed to that account (a project under /root), reaches no further than root does
already: only root and the account itself can enter the folder of the server's socket.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from services.chassis.child import Identity
from services.chassis.folder import MeshError
from services.chassis.launcher import CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH

ACCOUNTS = ("postgres", "nobody")
CAP_SETPCAP = 8


class Unreachable(MeshError):
    """The unprivileged account cannot pass through a folder that it needs; `folder` says which."""

    def __init__(self, folder: Path, identity: Identity) -> None:
        self.folder = folder
        super().__init__(
            f"PostgreSQL refuses to run as root, and the account that runs it (uid {identity.uid}) cannot pass through {folder}, "
            f"nor may it be given the capability to: run as another user, use a folder elsewhere, or chmod o+x {folder}"
        )


def unprivileged(data: Path) -> Identity | None:
    """Who is to run the cluster at `data`, there or not yet: None for this process's own user, unless that is root."""
    if os.geteuid() != 0:
        return None
    if data.exists() and data.stat().st_uid != 0:
        return Identity(data.stat().st_uid, data.stat().st_gid)
    for name in ACCOUNTS:
        try:
            account = pwd.getpwnam(name)
        except KeyError:
            continue
        return Identity(account.pw_uid, account.pw_gid)
    raise MeshError(f"PostgreSQL refuses to run as root, and there is no account {' or '.join(ACCOUNTS)} to run it")


def reaching(identity: Identity, folders: Iterable[Path]) -> Identity:
    """The identity, with the capability to pass everywhere where it needs that to reach the folders.

    Raises Unreachable when it needs that and this process has no such capability to give.
    """
    closed = next((folder for path in folders if (folder := _first_closed(path, identity))), None)
    if closed is None:
        return identity
    # A container's root often lacks the first, which reads and passes; the second writes too, and is still far less than root.
    capability = next((number for number in (CAP_DAC_READ_SEARCH, CAP_DAC_OVERRIDE) if _may_give(number)), None)
    if capability is None or not _may_give(CAP_SETPCAP):
        raise Unreachable(closed, identity)
    return replace(identity, capability=capability)


def _first_closed(path: Path, identity: Identity) -> Path | None:
    whole = path.resolve()
    return next((folder for folder in (*reversed(whole.parents), whole) if not _passes(folder, identity)), None)


def _passes(folder: Path, identity: Identity) -> bool:
    status = folder.stat()
    if status.st_uid == identity.uid:
        return bool(status.st_mode & 0o100)
    if status.st_gid == identity.gid:
        return bool(status.st_mode & 0o010)
    return bool(status.st_mode & 0o001)


def _may_give(capability: int) -> bool:
    try:
        status = Path("/proc/self/status").read_text()
    except FileNotFoundError:
        return False
    held = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(held >> capability & 1)
