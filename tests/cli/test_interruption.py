"""What signals do to a command."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from services.cli.interruption import postponed, run, unwind_on_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_unwinds_the_stack(number: signal.Signals) -> None:
    unwind_on_signals()

    with pytest.raises(SystemExit) as ended:
        os.kill(os.getpid(), number)

    assert ended.value.code == 128 + number


def test_a_signal_that_the_caller_ignores_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    unwind_on_signals()

    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_cancels_the_work_whichever_task_runs_when_it_comes(number: signal.Signals) -> None:
    unwound = []

    async def one(place: int) -> None:
        try:
            if place == 1:
                os.kill(os.getpid(), number)
            await asyncio.Event().wait()
        finally:
            unwound.append(place)

    async def work() -> None:
        # A signal's exception would be kept here: `gather` hands on the first one that its tasks end with, or none.
        await asyncio.gather(*(one(place) for place in range(3)), return_exceptions=True)

    unwind_on_signals()
    with pytest.raises(SystemExit) as ended:
        run(work())

    assert ended.value.code == 128 + number
    assert sorted(unwound) == [0, 1, 2]
    with pytest.raises(SystemExit):
        os.kill(os.getpid(), number)


def test_work_that_is_not_interrupted_returns_its_result() -> None:
    async def work() -> int:
        return 7

    assert run(work()) == 7


def test_a_postponed_signal_takes_effect_after_the_block() -> None:
    finished = []

    def work() -> None:
        with postponed():
            os.kill(os.getpid(), signal.SIGINT)
            finished.append(True)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert finished
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
