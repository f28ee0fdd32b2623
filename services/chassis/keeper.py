"""Keeps one process running: starts it, waits until it is healthy, starts it again when it dies, and says what happens.

The order among several is supervisor.py's; how a child is started and ended is child.py's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from signal import SIGKILL
from typing import TypeAlias

from services.chassis import child
from services.chassis.child import Child, Steps
from services.chassis.folder import Log, MeshError


@dataclass(frozen=True, slots=True)
class Timing:
    """The bounds of a process's life, in seconds."""

    healthy: float = 30.0
    """From a node's start to its first healthy answer: imports on a slow, busy machine take several seconds."""
    stop: float = 35.0
    """From a node's SIGTERM to its SIGKILL: past its own bounds, 20 s to drain and 10 more before it ends a stop that hangs."""
    first_backoff: float = 0.2
    """Before a process that died is started again; doubled at each death in a row."""
    longest_backoff: float = 10.0
    stable: float = 30.0
    """A process that was healthy for so long before it died starts with the first back-off again."""


@dataclass(frozen=True, slots=True)
class Started:
    """The process runs."""

    name: str
    pid: int

    def __str__(self) -> str:
        return f"{self.name}: started, pid {self.pid}"


@dataclass(frozen=True, slots=True)
class Healthy:
    """It answers, `seconds` after its start."""

    name: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.name}: healthy after {self.seconds:.1f} s"


@dataclass(frozen=True, slots=True)
class Died:
    """It ended unasked: its status (negative for a signal's number) and the last lines of its log."""

    name: str
    status: int
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name}: died with {child.describe(self.status)}{quoted(self.lines)}"


@dataclass(frozen=True, slots=True)
class Restarting:
    """It will be started again in `seconds`."""

    name: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.name}: restarting in {self.seconds:.1f} s"


@dataclass(frozen=True, slots=True)
class Progress:
    """What a start that takes long is at, or why it failed."""

    name: str
    line: str

    def __str__(self) -> str:
        return f"{self.name}: {self.line}"


Event: TypeAlias = Started | Healthy | Died | Restarting | Progress
"""What happened, for whoever watches; `str` makes a line of it."""
Report: TypeAlias = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class Process:
    """How one process is run."""

    name: str
    spawn: Callable[[], Child]
    ready: Callable[[Child], Awaitable[None]]
    """Returns once it is healthy; MeshError when it will not be."""
    stop_steps: Steps
    log: Log


class Keeper:
    """One process over all of its lives."""

    def __init__(self, process: Process, timing: Timing, report: Report) -> None:
        self._process, self._timing, self._report = process, timing, report
        self._child: Child | None = None
        self._healthy_at = 0.0

    @property
    def pid(self) -> int | None:
        """The running process's pid; None while there is none."""
        return self._child.pid if self._child is not None and self._child.status is None else None

    async def start(self) -> None:
        """Start it and wait until it is healthy. On MeshError it may still run: `stop` it."""
        began = asyncio.get_running_loop().time()
        self._child = self._process.spawn()
        self._report(Started(self._process.name, self._child.pid))
        await self._process.ready(self._child)
        self._healthy_at = asyncio.get_running_loop().time()
        self._report(Healthy(self._process.name, self._healthy_at - began))

    async def keep(self) -> None:
        """Start it again whenever it dies, until this is cancelled. It was started before."""
        delays = self._delays()
        while True:
            assert self._child is not None, "start comes first"
            status = await self._child.ended()
            self._report(Died(self._process.name, status, self._process.log.last_lines()))
            if asyncio.get_running_loop().time() - self._healthy_at >= self._timing.stable:
                delays = self._delays()
            await self._restart(delays)

    async def stop(self) -> None:
        """End it; nothing when it does not run."""
        if self._child is not None:
            await asyncio.to_thread(self._child.stop, self._process.stop_steps)

    def hasten(self) -> None:
        """Leave out the first, patient step of a stop."""
        if self._child is not None:
            self._child.signal(next((number for number, _ in self._process.stop_steps[1:]), SIGKILL))

    async def _restart(self, delays: Iterator[float]) -> None:
        for delay in delays:
            self._report(Restarting(self._process.name, delay))
            await asyncio.sleep(delay)
            try:
                return await self.start()
            except (MeshError, OSError) as error:
                self._report(Progress(self._process.name, str(error)))
                await self.stop()
        raise AssertionError("the delays have no end")

    def _delays(self) -> Iterator[float]:
        delay = self._timing.first_backoff
        while True:
            yield delay
            delay = min(2 * delay, self._timing.longest_backoff)


def quoted(lines: tuple[str, ...]) -> str:
    """A log's last lines as the end of a message of one line."""
    return f": {'; '.join(lines)}" if lines else ""
