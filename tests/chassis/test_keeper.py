"""A process that dies is started again, later and later, unless it lived long enough."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from services.chassis import child
from services.chassis.child import Child
from services.chassis.folder import Log, MeshError
from services.chassis.keeper import Died, Event, Healthy, Keeper, Process, Progress, Restarting, Started, Timing
from tests.chassis.process import BOUND


async def restarts(
    path: Path, timing: Timing, count: int, ready: Callable[[int], None] = lambda life: None
) -> list[Event]:
    """The events of a process that dies at once, up to its restart number `count`; `ready` may fail a life."""
    events: list[Event] = []
    enough = asyncio.Event()
    lives = 0

    def report(event: Event) -> None:
        events.append(event)
        if sum(isinstance(one, Restarting) for one in events) == count:
            enough.set()

    async def is_ready(_: Child) -> None:
        nonlocal lives
        lives += 1
        ready(lives)

    log = Log(path / "log" / "flighty.log")

    def spawn() -> Child:
        with log.open() as output:
            return child.spawn(["/bin/sh", "-c", "echo sorry; exit 3"], output=output)

    keeper = Keeper(Process("flighty", spawn, is_ready, (), log), timing, report)
    await keeper.start()
    keeping = asyncio.create_task(keeper.keep())
    try:
        await asyncio.wait_for(enough.wait(), BOUND)
    finally:
        keeping.cancel()
        await asyncio.wait({keeping})
        await keeper.stop()
    return events


def delays(events: list[Event]) -> list[float]:
    return [event.seconds for event in events if isinstance(event, Restarting)]


async def test_the_delay_doubles_up_to_its_longest(tmp_path: Path) -> None:
    events = await restarts(tmp_path, Timing(first_backoff=0.001, longest_backoff=0.005), 5)
    assert delays(events) == [0.001, 0.002, 0.004, 0.005, 0.005]
    assert [type(event) for event in events[:6]] == [Started, Healthy, Died, Restarting, Started, Healthy]
    assert events[2] == Died("flighty", 3, ("sorry",))


async def test_a_process_that_lived_long_enough_begins_with_the_first_delay(tmp_path: Path) -> None:
    events = await restarts(tmp_path, Timing(first_backoff=0.001, longest_backoff=0.005, stable=0.0), 3)
    assert delays(events) == [0.001, 0.001, 0.001]


async def test_a_restart_that_fails_is_tried_again_later(tmp_path: Path) -> None:
    def ready(life: int) -> None:
        if life in (2, 3):
            raise MeshError("not yet")

    events = await restarts(tmp_path, Timing(first_backoff=0.001), 3, ready)
    assert delays(events) == [0.001, 0.002, 0.004]
    assert events.count(Progress("flighty", "not yet")) == 2


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (Started("node", 7), "node: started, pid 7"),
        (Healthy("node", 0.25), "node: healthy after 0.2 s"),
        (Died("node", -9, ()), "node: died with signal 9 (SIGKILL)"),
        (Died("node", 3, ("one", "two")), "node: died with exit status 3: one; two"),
        (Restarting("node", 0.4), "node: restarting in 0.4 s"),
        (Progress("postgres", "PostgreSQL is starting"), "postgres: PostgreSQL is starting"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_an_event_is_shown_in_one_line(event: Event, line: str) -> None:
    assert str(event) == line
