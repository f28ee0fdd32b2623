"""What signals do to a command."""

from __future__ import annotations

import os
import signal

import pytest

from services.cli.interruption import postponed, stop_on_hangup, unwind_on_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_unwinds_the_stack(number: signal.Signals) -> None:
    unwind_on_signals()

    with pytest.raises(SystemExit) as ended:
        os.kill(os.getpid(), number)

    assert ended.value.code == 128 + number


def test_a_signal_that_the_caller_ignores_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    unwind_on_signals()
    stop_on_hangup()

    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_hangup_asks_for_an_orderly_stop_until_the_mesh_has_ended() -> None:
    asked = []
    unwind_on_signals()
    stop_on_hangup()
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))

    os.kill(os.getpid(), signal.SIGHUP)
    assert asked == [signal.SIGTERM]

    unwind_on_signals()
    with pytest.raises(SystemExit):
        os.kill(os.getpid(), signal.SIGHUP)


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
