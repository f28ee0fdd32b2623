"""How much runs at once: both bounds, and turns."""

from __future__ import annotations

import asyncio

from services.orchestrator.admission import Admission


def test_no_more_runs_come_in_than_there_may_be() -> None:
    admission = Admission(max_count=2, max_bytes=100)
    assert [admission.try_enter(1) for _ in range(3)] == [True, True, False]
    admission.leave(1)
    assert admission.try_enter(1)


def test_no_more_bytes_come_in_than_there_may_be() -> None:
    admission = Admission(max_count=10, max_bytes=100)
    assert [admission.try_enter(60), admission.try_enter(41), admission.try_enter(40)] == [True, False, True]


def test_a_run_that_is_larger_than_all_room_comes_in_alone() -> None:
    admission = Admission(max_count=10, max_bytes=100)
    assert admission.try_enter(1000)
    assert not admission.try_enter(0)
    admission.leave(1000)
    assert admission.try_enter(1)
    assert not admission.try_enter(1000)


async def test_who_waits_comes_in_before_who_asks_later() -> None:
    admission = Admission(max_count=10, max_bytes=100)
    await admission.enter(60)
    large = asyncio.create_task(admission.enter(80))
    await asyncio.sleep(0)
    assert not admission.try_enter(1)
    admission.leave(60)
    await asyncio.wait_for(large, 5)
    assert admission.try_enter(20)


async def test_who_gives_up_waiting_holds_nobody_up() -> None:
    admission = Admission(max_count=1, max_bytes=100)
    await admission.enter(1)
    waiting = asyncio.create_task(admission.enter(1))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    admission.leave(1)
    assert admission.try_enter(1)
