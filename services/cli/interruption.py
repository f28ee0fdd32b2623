"""What a signal does to a command: it unwinds the stack, so that temporary files go and children are stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import NoReturn


def unwind_on_signals() -> None:
    """Let SIGTERM and SIGHUP end this process as Ctrl-C does, quietly and with 128 and their number.

    Not where the caller ignores one (nohup), or something else handles it, and not outside the main thread, where Python sets no
    handler.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) in (signal.SIG_DFL, _stop):
            with contextlib.suppress(ValueError):
                signal.signal(number, _unwind)


def stop_on_hangup() -> None:
    """Let SIGHUP, of a closed terminal, ask for the orderly stop of SIGTERM, until `unwind_on_signals` is called again."""
    if signal.getsignal(signal.SIGHUP) == _unwind:
        signal.signal(signal.SIGHUP, _stop)


@contextlib.contextmanager
def postponed() -> Iterator[None]:
    """Signals that would end the process take effect when the block is over; for the main thread."""
    came: list[int] = []
    ending = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in ending}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            os.kill(os.getpid(), came[0])


def _stop(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _unwind(number: int, _frame: object) -> NoReturn:
    sys.exit(128 + number)
