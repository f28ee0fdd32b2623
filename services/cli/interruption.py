"""What a signal does to a command: it unwinds the stack, so that temporary files go and children are stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Coroutine, Iterator
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")


def unwind_on_signals() -> None:
    """Let SIGTERM and SIGHUP end this process as Ctrl-C does, quietly and with 128 and their number.

    Not where the caller ignores one (nohup), or something else handles it, and not outside the main thread, where Python sets no
    handler.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            with contextlib.suppress(ValueError):
                signal.signal(number, _unwind)


def run(work: Coroutine[Any, Any, T]) -> T:
    """What asyncio.run does, with SIGTERM and SIGHUP treated as it treats Ctrl-C: `work` is cancelled, then the process ends.

    A handler that raises would raise in whichever task runs just then, and a task may keep what it gets to itself.
    """
    came: list[int] = []

    async def main() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def stop(number: int) -> None:
            came.append(number)
            task.cancel()

        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == _unwind:
                loop.add_signal_handler(number, stop, number)
        return await work

    try:
        return asyncio.run(main())
    except asyncio.CancelledError:
        if came:
            sys.exit(128 + came[0])
        raise
    finally:
        # A loop that closes leaves its signals to their defaults.
        unwind_on_signals()


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


def _unwind(number: int, _frame: object) -> NoReturn:
    sys.exit(128 + number)
