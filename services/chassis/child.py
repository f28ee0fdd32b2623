"""A child process that cannot outlive its parent: started, signalled, waited for, stopped.

On Linux the kernel ends it with the thread that started it (PR_SET_PDEATHSIG); elsewhere launcher.py stays beside it as a guard.
What is run, and when it is run again, is its owner's: embedded.py and supervisor.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals
from typing import BinaryIO, TypeAlias

from services.chassis import launcher

Steps: TypeAlias = tuple[tuple[Signals, float], ...]
"""Signals that end a child, each with the seconds that it is given; SIGKILL follows the last."""
GUARDED = sys.platform != "linux"
"""Whether a guard process stands in for PR_SET_PDEATHSIG on this platform."""
PATIENCE = 30.0
"""Seconds that a guard gives a child to end after its parent: PostgreSQL's last checkpoint may take as long on a slow disk."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The user that a child becomes."""

    uid: int
    gid: int
    capability: int | None = None
    """The one capability that it keeps (Linux)."""


class Child:
    """A running child, reaped by a thread of its own, so that it may be waited for with and without an event loop."""

    def __init__(self, process: subprocess.Popen[bytes], lifeline: int | None) -> None:
        self.pid = process.pid
        """The child's pid and process group; the guard's where there is one."""
        self._process = process
        self._lifeline = lifeline
        self._status: Future[int] = Future()
        threading.Thread(target=self._reap, name=f"reaper of {process.pid}", daemon=True).start()

    @property
    def status(self) -> int | None:
        """The exit status once it has ended: negative for the signal that ended it."""
        return self._status.result() if self._status.done() else None

    def wait(self, seconds: float | None = None) -> int | None:
        """Block until it has ended, at most `seconds`; its status, or None when it still runs."""
        with contextlib.suppress(TimeoutError):
            return self._status.result(seconds)
        return None

    async def ended(self) -> int:
        """Its status, once it has ended. Cancelling this leaves the child alone."""
        return await asyncio.shield(asyncio.wrap_future(self._status))

    def signal(self, number: Signals) -> None:
        """Send it a signal (SIGKILL to its whole group); nothing when it has ended."""
        if self._status.done():
            return
        if number == SIGKILL:
            self._kill_group()
        else:
            self._process.send_signal(number)

    def stop(self, steps: Steps) -> int:
        """Send each step's signal and wait its seconds, the next step following only while it runs, SIGKILL last; its status."""
        for number, seconds in steps:
            self.signal(number)
            status = self.wait(seconds)
            if status is not None:
                return status
        self.signal(SIGKILL)
        return self._status.result()

    def _reap(self) -> None:
        status = self._process.wait()
        # What it left behind in its group, and the program of a guard that was killed, must not live on.
        self._kill_group()
        if self._lifeline is not None:
            os.close(self._lifeline)
        self._status.set_result(status)

    def _kill_group(self) -> None:
        # macOS answers EPERM for a group of zombies.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, SIGKILL)


def spawn(
    program: Sequence[str],
    *,
    stop_signal: Signals = SIGTERM,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    output: BinaryIO | None = None,
    identity: Identity | None = None,
    guarded: bool = GUARDED,
) -> Child:
    """Start `program` (its first part an absolute path) in a session of its own, so that a terminal's Ctrl-C passes it by.

    It gets `stop_signal` when this process is gone, however it went. To be called in the main thread: the kernel's watch is on the
    thread that starts the child, and RuntimeError says so. `output` takes stdout and stderr; None leaves them on the terminal.
    """
    if not guarded and threading.current_thread() is not threading.main_thread():
        raise RuntimeError("a child must be spawned in the main thread, whose end it is tied to")
    return _start(program, stop_signal, output, env=env, cwd=cwd, identity=identity, guarded=guarded)


def run(
    program: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    identity: Identity | None = None,
    guarded: bool = GUARDED,
) -> tuple[int, str]:
    """Run a short program to its end, in any thread; its status, and stdout with stderr."""
    with tempfile.TemporaryFile() as output:
        child = _start(program, SIGTERM, output, env=env, cwd=cwd, identity=identity, guarded=guarded)
        try:
            status = child.wait()
        finally:
            child.signal(SIGTERM)
        assert status is not None
        output.seek(0)
        return status, output.read().decode(errors="replace")


def describe(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"exit status {status}"
    with contextlib.suppress(ValueError):
        return f"signal {-status} ({Signals(-status).name})"
    return f"signal {-status}"


def _start(
    program: Sequence[str],
    stop_signal: Signals,
    output: BinaryIO | None,
    *,
    env: Mapping[str, str] | None,
    cwd: Path | None,
    identity: Identity | None,
    guarded: bool,
) -> Child:
    watched, lifeline = os.pipe() if guarded else (None, None)
    spec = launcher.Spec(
        parent=os.getpid(),
        stop_signal=stop_signal,
        lifeline=watched,
        patience=PATIENCE,
        user=(identity.uid, identity.gid) if identity else None,
        capability=identity.capability if identity else None,
    )
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", launcher.__file__, json.dumps(spec), *program],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=env,
            cwd=cwd,
            start_new_session=True,
            pass_fds=() if watched is None else (watched,),
        )
    except BaseException:
        if lifeline is not None:
            os.close(lifeline)
        raise
    finally:
        if watched is not None:
            os.close(watched)
    return Child(process, lifeline)
