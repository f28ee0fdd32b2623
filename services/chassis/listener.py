"""A connection that LISTENs, of its own: a pool's reset would drop its listeners. It is opened anew whenever it is lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import asyncpg

from services.chassis.postgres import PostgresSettings

Follower: TypeAlias = Callable[[Collection[int] | None], None]

_log = logging.getLogger(__name__)
_LOOK_SECONDS = 30.0
"""A connection that was cut without a word is noticed within this; whoever waits for a wake-up polls meanwhile."""
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0
"""Seconds before the next attempt, doubled each time: a restarted PostgreSQL is back in about a second."""


class Listener:
    """Tells who follows a channel which partitions a notification names, as in `3,7`.

    None stands for all of them: the connection has been made anew, and notifications may have been lost.
    """

    def __init__(self, settings: PostgresSettings, channels: Mapping[str, Sequence[Follower]]) -> None:
        self._settings = settings
        self._channels = channels
        self._pause = _FIRST_PAUSE
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to listen, also while PostgreSQL is away."""
        self._running = asyncio.create_task(self._run())

    async def aclose(self) -> None:
        """Closes the connection."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])

    async def _run(self) -> None:
        while True:
            try:
                await self._listen()
            except Exception as error:
                # Once an outage; whatever it is, somebody waits for the next notification.
                if self._pause == _FIRST_PAUSE:
                    _log.warning("not listening to PostgreSQL: %s", error or type(error).__name__)
            await asyncio.sleep(self._pause)
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    async def _listen(self) -> None:
        """Returns, or raises, when the connection is lost."""
        connection = await asyncpg.connect(
            self._settings.url,
            timeout=self._settings.connect_timeout,
            command_timeout=self._settings.connect_timeout,
            server_settings={"application_name": f"{self._settings.application_name}-listener"},
        )
        try:
            lost = asyncio.Event()
            connection.add_termination_listener(lambda _connection: lost.set())
            for channel, followers in self._channels.items():
                await connection.add_listener(channel, partial(_pass_on, followers))
            self._pause = _FIRST_PAUSE
            for followers in self._channels.values():
                for tell in followers:
                    tell(None)
            while not lost.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_SECONDS):
                        await lost.wait()
                    return
                await connection.fetchval("SELECT 1")
        finally:
            connection.terminate()


def _pass_on(followers: Sequence[Follower], _connection: Any, _pid: int, _channel: str, payload: object) -> None:
    partitions = [int(number) for number in str(payload).split(",") if number]
    for tell in followers:
        tell(partitions)
