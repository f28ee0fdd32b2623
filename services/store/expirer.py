"""Notes the ends of leases that nobody renewed, so that who watches hears of them."""

from __future__ import annotations

import asyncio
import logging

from services.chassis.errors import BridgeError
from services.store.repository.lease import LeaseRepository

_log = logging.getLogger(__name__)
_SECONDS = 0.5
"""Between two looks: the contract promises a second, and a look at the few leases that are held costs next to nothing."""
_BATCH = 500


class Expirer:
    """Every replica looks; each end is noted once."""

    def __init__(self, leases: LeaseRepository) -> None:
        self._leases = leases
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to look."""
        self._running = asyncio.create_task(self._run())

    async def aclose(self) -> None:
        """Stops looking."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])

    async def _run(self) -> None:
        while True:
            try:
                while await self._leases.note_ends(_BATCH) == _BATCH:
                    pass
            except BridgeError:
                # The database is away, which the pool's breaker has logged; the leases that end meanwhile are noted afterwards.
                pass
            except Exception:
                _log.exception("the ends of leases are not noted")
            await asyncio.sleep(_SECONDS)
