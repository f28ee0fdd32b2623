"""What the tests of processes share: programs in a process of their own, and waiting for the end of any process."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
BOUND = 20.0
"""Seconds that anything waited for here may take on a busy machine."""
TICK = 0.01


@contextlib.contextmanager
def started(*argv: str) -> Iterator[subprocess.Popen[str]]:
    """A Python program of the tests in a process of its own, its output to be read; killed at the end."""
    command = [sys.executable, "-u", *argv]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT) as process:
        try:
            yield process
        finally:
            process.kill()


def line_of(process: subprocess.Popen[str], beginning: str) -> str:
    """The rest of the next line that the process writes with this beginning; it must come before the output's end."""
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        if line.startswith(beginning):
            return line.removeprefix(beginning).strip()
        seen.append(line)
    raise AssertionError(f"no line begins with {beginning!r}: {seen}")


def ended(pid: int, seconds: float = BOUND) -> bool:
    """Whether the process ends within the bound; a zombie has ended."""
    if sys.platform != "linux":
        return until(lambda: not _exists(pid), seconds)
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], seconds)[0])
    finally:
        os.close(handle)


def runs(pid: int) -> bool:
    return not ended(pid, 0)


def until(condition: Callable[[], object], seconds: float = BOUND) -> bool:
    """Whether the condition comes true within the bound, for what gives no event to wait for."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(TICK)
    return True


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
