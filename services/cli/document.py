"""A file's bytes: read within a bound, read in chunks, and put back in one step. What they mean is the node's to say."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from blake3 import blake3

CHUNK_BYTES = 256 * 1024
"""The size that the contract calls good for a stream."""


class FileChangedError(OSError):
    """The file changed while it was worked on."""

    def __init__(self) -> None:
        super().__init__(errno.EAGAIN, "The file changed meanwhile")


def read(path: Path, limit: int) -> bytes | None:
    """All bytes of a file, or None when there are more than `limit`. Raises OSError."""
    with path.open("rb") as file:
        content = file.read(limit + 1)
    return content if len(content) <= limit else None


def digest(path: Path) -> str:
    """BLAKE3 of the file's bytes, 64 hex digits, in constant memory. Raises OSError."""
    with path.open("rb") as file:
        return digest_of(file)


def digest_of(file: BinaryIO) -> str:
    """BLAKE3 of what is left to read, 64 hex digits, in constant memory. Raises OSError."""
    hasher = blake3()
    while chunk := file.read(CHUNK_BYTES):
        hasher.update(chunk)
    return hasher.hexdigest()


async def chunks(path: Path, expected_digest: str | None = None) -> AsyncIterator[bytes]:
    """The file's bytes in chunks. Raises OSError; FileChangedError after the last one if their digest is not `expected_digest`."""
    hasher = blake3()
    with await asyncio.to_thread(path.open, "rb") as file:
        while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
            hasher.update(chunk)
            yield chunk
    if expected_digest not in (None, hasher.hexdigest()):
        raise FileChangedError


def replace(path: Path, expected: bytes, content: bytes) -> None:
    """Put `content` in the place of `expected`, durably and in one step: a reader sees the one or the other.

    The mode stays, and the owner where this user may set it. Raises OSError, of which FileChangedError says that the file
    holds `expected` no more; the file is untouched then.
    """
    # A link stays a link: what it leads to is replaced.
    path = path.resolve()
    handle, name = tempfile.mkstemp(prefix=".omnibridge-", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            before = path.stat()
            with contextlib.suppress(PermissionError):
                os.fchown(handle, before.st_uid, before.st_gid)
            # After the owner, a change of which clears the set-user-ID bit.
            os.fchmod(handle, stat.S_IMODE(before.st_mode))
            os.fsync(handle)
        if read(path, len(expected)) != expected:
            raise FileChangedError
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
