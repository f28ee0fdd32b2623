"""Partitions of a role: its replicas share them by leases of the store, each holds a fair part, and none is held by two at once.

What is done with a partition is the owner's; a lost one is told at once, and whatever its work still sends is fenced by the epoch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from itertools import islice
from typing import Protocol, Self

import grpc
from google.protobuf.duration_pb2 import Duration
from pydantic import BaseModel, ConfigDict, Field, model_validator

from omninode.bridge.store.v1 import store_pb2
from services.chassis.errors import BridgeError

_log = logging.getLogger(__name__)
_PAGE = 1000
"""The store's largest page of leases."""
_RENEWALS = 500
"""As many as the store renews in one call."""


class PartitionSettings(BaseModel):
    """How a replica holds its partitions."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    ttl_seconds: float = Field(5.0, ge=0.3, le=3600)
    """How long the partitions of a replica that crashed wait for another; renewed at every third of it, so two may fail."""
    margin_seconds: float = Field(1.0, gt=0)
    """A lease counts as lost this much before its end: clocks drift, and work takes a moment to stop."""
    retry_seconds: float = Field(0.5, gt=0)
    """Between two looks while something is missing: the store, or a partition that another replica has yet to give up."""

    @model_validator(mode="after")
    def _a_renewal_fits_in(self) -> Self:
        if self.margin_seconds >= self.ttl_seconds / 3:
            raise ValueError("margin_seconds must be less than a third of ttl_seconds")
        return self


class LeaseStore(Protocol):
    """What is called of a store: its stub has it all."""

    def DescribeStore(
        self, request: store_pb2.DescribeStoreRequest, /, *, timeout: float
    ) -> Awaitable[store_pb2.DescribeStoreResponse]: ...
    def AcquireLease(
        self, request: store_pb2.AcquireLeaseRequest, /, *, timeout: float
    ) -> Awaitable[store_pb2.AcquireLeaseResponse]: ...
    def RenewLeases(
        self, request: store_pb2.RenewLeasesRequest, /, *, timeout: float
    ) -> Awaitable[store_pb2.RenewLeasesResponse]: ...
    def ReleaseLease(
        self, request: store_pb2.ReleaseLeaseRequest, /, *, timeout: float
    ) -> Awaitable[store_pb2.ReleaseLeaseResponse]: ...
    def ListLeases(
        self, request: store_pb2.ListLeasesRequest, /, *, timeout: float
    ) -> Awaitable[store_pb2.ListLeasesResponse]: ...


def fair_share(owner: str, members: Iterable[str], partition_count: int) -> int:
    """How many partitions `owner` is to hold: shares of all members differ by one at most and sum to all partitions."""
    ranked = sorted({owner, *members})
    return partition_count // len(ranked) + (ranked.index(owner) < partition_count % len(ranked))


def lease_name(role: str, work: str, partition: int) -> str:
    """The name of the lease by which a replica of the role holds the partition."""
    return f"{role}/{work}/{partition}"


class _Held:
    """A lease that this replica holds, until the timer takes it."""

    __slots__ = ("epoch", "expiry", "partition")

    def __init__(self, partition: int | None, epoch: int, expiry: asyncio.TimerHandle) -> None:
        self.partition = partition
        """None for the member's own lease."""
        self.epoch = epoch
        self.expiry = expiry


class Partitions:
    """The partitions of one role's work that this replica holds.

    `on_acquired(partition, epoch)` begins a partition's work, `on_lost(partition)` ends it; both return at once. A partition
    is lost when another has it, when it is given up for a new replica, or when no renewal was answered in time.

    The leases are `<role>/member/<owner>` for each replica and `<role>/<work>/<partition>`; `owner` is one segment of a lease's
    name, another for every start of a process.
    """

    def __init__(
        self,
        store: LeaseStore,
        *,
        role: str,
        work: str,
        owner: str,
        settings: PartitionSettings,
        on_acquired: Callable[[int, int], None],
        on_lost: Callable[[int], None],
    ) -> None:
        self._store = store
        self._role = role
        self._work = work
        self._owner = owner
        self._member = f"{role}/member/{owner}"
        self._settings = settings
        self._ttl = Duration()
        self._ttl.FromTimedelta(timedelta(seconds=settings.ttl_seconds))
        self._interval = settings.ttl_seconds / 3
        self._on_acquired = on_acquired
        self._on_lost = on_lost
        self._held: dict[str, _Held] = {}
        self._running: asyncio.Task[None] | None = None

    def owned(self) -> list[int]:
        """The partitions that this replica holds, in order."""
        return sorted(held.partition for held in self._held.values() if held.partition is not None)

    def start(self) -> None:
        """Begins to take part, also while the store is away."""
        self._running = asyncio.create_task(self._run())

    async def aclose(self) -> None:
        """Ends all work and releases every lease, so that others need not wait for its end."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])
        await self._release(list(self._held))

    async def _run(self) -> None:
        partition_count = None
        while True:
            settled = False
            try:
                if partition_count is None:
                    partition_count = await self._partition_count()
                settled = await self._round(partition_count)
            except BridgeError as error:
                _log.warning(
                    "leases not kept: %s", error.message, extra={"role": self._role, "reason": error.reason_name}
                )
            except TimeoutError:
                _log.warning("leases not kept: the store takes too long", extra={"role": self._role})
            except Exception:
                _log.exception("leases not kept")
            await asyncio.sleep(self._interval if settled else min(self._interval, self._settings.retry_seconds))

    async def _partition_count(self) -> int:
        described = await self._store.DescribeStore(store_pb2.DescribeStoreRequest(), timeout=self._interval)
        return described.partition_count

    async def _round(self, partition_count: int) -> bool:
        """Renews, gives up what is too much, takes what is missing. Returns whether the replica holds its share now."""
        if self._held:
            await self._renew()
        if self._member not in self._held:
            await self._acquire(self._member, None)
        leases = {lease.name: lease.owner for lease in await self._list()}
        members = [owner for name, owner in leases.items() if name.startswith(f"{self._role}/member/")]
        share = fair_share(self._owner, members, partition_count)
        owned = self.owned()
        await self._release([self._lease(partition) for partition in owned[share:]])
        free = (partition for partition in range(partition_count) if self._is_free(self._lease(partition), leases))
        # One after another: replicas that start together leave the store's connections to its other callers.
        for partition in islice(free, max(0, share - len(owned))):
            await self._acquire(self._lease(partition), partition)
        return self._member in self._held and len(self.owned()) == share

    def _is_free(self, name: str, leases: Mapping[str, str]) -> bool:
        # One that the store has in this replica's name and that is not held here: the answer was lost on its way.
        return name not in self._held and leases.get(name, self._owner) == self._owner

    async def _renew(self) -> None:
        held = [store_pb2.LeaseEpoch(name=name, epoch=held.epoch) for name, held in self._held.items()]
        for start in range(0, len(held), _RENEWALS):
            await self._renew_some(held[start : start + _RENEWALS])

    async def _renew_some(self, asked: Sequence[store_pb2.LeaseEpoch]) -> None:
        sent = _now()
        request = store_pb2.RenewLeasesRequest(owner=self._owner, leases=asked, ttl=self._ttl)
        response = await self._store.RenewLeases(request, timeout=self._interval)
        for lease, renewed in zip(asked, response.leases, strict=True):
            held = self._held.get(lease.name)
            if held is None:
                continue
            if renewed.held:
                held.expiry.cancel()
                held.expiry = self._expiry(lease.name, sent)
            else:
                self._lose(lease.name)

    async def _acquire(self, name: str, partition: int | None) -> None:
        sent = _now()
        request = store_pb2.AcquireLeaseRequest(name=name, owner=self._owner, ttl=self._ttl)
        response = await self._store.AcquireLease(request, timeout=self._interval)
        if not response.acquired:
            return
        self._held[name] = _Held(partition, response.lease.epoch, self._expiry(name, sent))
        if partition is not None:
            self._on_acquired(partition, response.lease.epoch)

    async def _list(self) -> list[store_pb2.Lease]:
        leases: list[store_pb2.Lease] = []
        token = ""
        while True:
            request = store_pb2.ListLeasesRequest(prefix=f"{self._role}/", page_size=_PAGE, page_token=token)
            response = await self._store.ListLeases(request, timeout=self._interval)
            leases += response.leases
            token = response.next_page_token
            if not token:
                return leases

    async def _release(self, names: list[str]) -> None:
        """Ends the work first, then the leases; those that a store that is away does not release end by themselves."""
        epochs = {name: self._held[name].epoch for name in names}
        for name in names:
            self._lose(name)
        with contextlib.suppress(BridgeError, grpc.aio.AioRpcError, TimeoutError):
            for name, epoch in epochs.items():
                request = store_pb2.ReleaseLeaseRequest(name=name, owner=self._owner, epoch=epoch)
                await self._store.ReleaseLease(request, timeout=self._interval)

    def _expiry(self, name: str, sent: float) -> asyncio.TimerHandle:
        """The timer of a lease that was asked for at `sent`: the store granted it later, so there it ends later, too."""
        end = sent + self._settings.ttl_seconds - self._settings.margin_seconds
        return asyncio.get_running_loop().call_at(end, self._lose, name)

    def _lose(self, name: str) -> None:
        held = self._held.pop(name)
        held.expiry.cancel()
        if held.partition is not None:
            self._on_lost(held.partition)

    def _lease(self, partition: int) -> str:
        return lease_name(self._role, self._work, partition)


def _now() -> float:
    return asyncio.get_running_loop().time()
