"""Builds all projections anew beside the live ones and puts them in their place at once.

The order makes it whole: the ends of the log are noted first, then all states are read, then the log from those ends on; and the
last of it while the watermarks are held. What a step writes is repository/rebuild's.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from datetime import timedelta

from services.chassis.errors import BridgeError
from services.store.domain import Lease, LeaseEpoch, LeaseRelease, LeaseRequest, Renewal
from services.store.materializer import MaterializerSettings
from services.store.projection import REBUILD_LEASE, Phase, Progress, RebuildRunning
from services.store.repository.lease import LeaseRepository
from services.store.repository.rebuild import RebuildRepository

_INTERVAL = 0.1
"""Seconds between two messages of one phase: as often as an eye looks."""

_ENDING_SECONDS = 5.0
"""How long a stop waits for a broken-off rebuild to be dropped."""

_log = logging.getLogger(__name__)


class Rebuilder:
    """Rebuilds projections, one rebuild at a time in the whole database. `new_owner` gives a name for each."""

    def __init__(
        self,
        generations: RebuildRepository,
        leases: LeaseRepository,
        settings: MaterializerSettings,
        new_owner: Callable[[], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._generations = generations
        self._leases = leases
        self._settings = settings
        self._new_owner = new_owner
        self._clock = clock
        self._endings: set[asyncio.Task[None]] = set()

    async def aclose(self) -> None:
        """Returns when what broken-off rebuilds left is dropped, or after some seconds: a sweep finds the rest."""
        if self._endings:
            _, unfinished = await asyncio.wait(self._endings, timeout=_ENDING_SECONDS)
            for ending in unfinished:
                ending.cancel()
            await asyncio.gather(*unfinished, return_exceptions=True)

    async def rebuild(self) -> AsyncGenerator[Progress]:
        """Rebuilds, and says how far it is: at each phase's begin, and in between ten times a second at most.

        Whoever stops iterating ends it; nothing is live of it then, unless cleaning has begun. Raises RebuildRunning with the
        owner, also where the lease is lost on the way.
        """
        ttl = timedelta(seconds=self._settings.rebuild_lease_seconds)
        owner = self._new_owner()
        lease = await self._leases.acquire(LeaseRequest(name=REBUILD_LEASE, owner=owner, ttl=ttl))
        if lease.owner != owner:
            raise RebuildRunning(metadata={"owner": lease.owner})
        run = _Run(self._generations, self._leases, self._settings, lease, self._clock)
        shown: tuple[Phase | None, float] = (None, 0.0)
        try:
            async for progress in run.steps():
                now = self._clock()
                if progress.phase is not shown[0] or now - shown[1] >= _INTERVAL:
                    shown = (progress.phase, now)
                    yield progress
        finally:
            # In a task of its own, because the caller's may be cancelled once more.
            ending = asyncio.get_running_loop().create_task(run.end(), context=contextvars.Context())
            self._endings.add(ending)
            ending.add_done_callback(self._endings.discard)
            await asyncio.shield(ending)


class _Run:
    """One rebuild, which holds the lease."""

    def __init__(
        self,
        generations: RebuildRepository,
        leases: LeaseRepository,
        settings: MaterializerSettings,
        lease: Lease,
        clock: Callable[[], float],
    ) -> None:
        self._generations = generations
        self._leases = leases
        self._chunk = settings.rebuild_chunk
        self._ttl = timedelta(seconds=settings.rebuild_lease_seconds)
        self._lease = lease
        self._clock = clock
        self._renewed_at = clock()

    async def steps(self) -> AsyncIterator[Progress]:
        await self._drop_all()
        generation = await self._generations.new_generation(self._lease)
        begin = await self._generations.ends()
        built, total = 0, await self._generations.count_keys()
        yield Progress(Phase.BUILDING, 0, total)
        last, done = "", self._chunk
        while done == self._chunk:
            done, last = await self._generations.build(await self._held(), generation, last, self._chunk)
            built += done
            yield Progress(Phase.BUILDING, built, max(built, total))
        async for progress in self._follow(generation, begin):
            yield progress
        yield Progress(Phase.CLEANING, 0, built)
        dropped = 0
        while gone := await self._generations.drop(await self._held(), self._chunk):
            dropped += gone
            yield Progress(Phase.CLEANING, dropped, max(built, dropped))
        yield Progress(Phase.DONE, built, built)

    async def _follow(self, generation: int, begin: dict[int, int]) -> AsyncIterator[Progress]:
        """The log's tail, until what is left of it fits a round; then that, and the swap."""
        first, ends = sum(begin.values()), sum((await self._generations.ends()).values())
        yield Progress(Phase.CATCHING_UP, 0, ends - first)
        tail = await self._generations.follow(await self._held(), generation, begin, self._chunk)
        while tail.is_long:
            done = sum(tail.begin.values()) - first
            yield Progress(Phase.CATCHING_UP, done, max(done, ends - first))
            tail = await self._generations.follow(await self._held(), generation, tail.begin, self._chunk)
        await self._generations.swap(await self._held(), generation, tail.begin, self._chunk)

    async def end(self) -> None:
        """Drops what is not live and gives the lease back; where it cannot, the lease ends and the leftovers are found later."""
        try:
            await self._drop_all()
            release = LeaseRelease(name=self._lease.name, owner=self._lease.owner, epoch=self._lease.epoch)
            await self._leases.release(release)
        except RebuildRunning:
            pass
        except BridgeError as error:
            _log.warning("a rebuild's leftovers stay: %s", error.message, extra={"reason": error.reason_name})
        except Exception:
            _log.exception("a rebuild's leftovers stay")

    async def _drop_all(self) -> None:
        while await self._generations.drop(await self._held(), self._chunk):
            pass

    async def _held(self) -> Lease:
        """The lease, renewed where a third of it has passed."""
        now = self._clock()
        if now - self._renewed_at > self._ttl.total_seconds() / 3:
            held = LeaseEpoch(name=self._lease.name, epoch=self._lease.epoch)
            await self._leases.renew(Renewal(owner=self._lease.owner, leases=(held,), ttl=self._ttl))
            self._renewed_at = now
        return self._lease
