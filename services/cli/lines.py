"""The lines of a file or a pipe, as they come. What they say is not looked at.

Nothing waits in a thread: a pipe on which nothing comes must not keep a command from ending.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncGenerator

CHUNK_BYTES = 256 * 1024
PAUSE_SECONDS = 0.05
"""When nothing has come for so long, what there is need not wait for more."""


class Lines:
    """The lines of an open file, from where it stands; to be read once."""

    def __init__(self, descriptor: int, longest: int) -> None:
        """A line of more than `longest` bytes is given cut off somewhere behind them."""
        self._descriptor = descriptor
        self._longest = longest
        self._read_bytes = 0
        self.count = 0
        """Lines that were read."""
        self._ended = False
        status = os.fstat(descriptor)
        self._size = status.st_size if stat.S_ISREG(status.st_mode) else None

    @property
    def total(self) -> int | None:
        """How many lines there are, by what is read of them; None where nothing tells how much there is to read."""
        if self._ended:
            return self.count
        if not self._size or not self.count:
            return None
        return max(self.count, round(self._size * self.count / self._read_bytes))

    async def read(self) -> AsyncGenerator[list[bytes], None]:
        """Some lines at a time, without their ends; an empty list where none comes for a while. Raises OSError."""
        rest, is_paused = b"", True
        while True:
            if not await _readable(self._descriptor, None if is_paused else PAUSE_SECONDS):
                is_paused = True
                yield []
                continue
            chunk = os.read(self._descriptor, CHUNK_BYTES)
            if not chunk:
                break
            self._read_bytes += len(chunk)
            *lines, rest = (rest + chunk).split(b"\n")
            rest = rest[: self._longest + 1]
            self.count += len(lines)
            is_paused = False
            yield lines
        self._ended = True
        if rest:
            self.count += 1
            yield [rest]


async def _readable(descriptor: int, seconds: float | None) -> bool:
    """Whether something can be read, or the end is there; waited for at most `seconds`, or for as long as it takes."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    try:
        loop.add_reader(descriptor, ready.set)
    except PermissionError:
        # A file on a disk never has to be waited for, and epoll says so. Others are to have their turn all the same.
        await asyncio.sleep(0)
        return True
    try:
        async with asyncio.timeout(seconds):
            await ready.wait()
    except TimeoutError:
        return False
    else:
        return True
    finally:
        loop.remove_reader(descriptor)
