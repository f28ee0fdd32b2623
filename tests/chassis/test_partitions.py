"""Partitions: replicas share them by leases of the real store, and none is held by two at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from omninode.bridge.store.v1 import store_pb2
from omninode.bridge.store.v1.store_pb2_grpc import StoreServiceStub
from services.chassis.errors import Unavailable
from services.chassis.identity import partition_of
from services.chassis.partitions import Partitions, PartitionSettings, fair_share, lease_name
from tests.store.node import store_stub

COUNT = 16
"""The partitions of a database that was created as usual."""
QUICK = PartitionSettings(ttl_seconds=1.2, margin_seconds=0.35, retry_seconds=0.02)
BOUND = 10.0
"""Seconds after which what a test waits for will not come."""


class Replica:
    """One replica of a role, with what it was told of its partitions."""

    def __init__(self, store: Any, owner: str, changed: asyncio.Event | None = None) -> None:
        self.partitions = Partitions(
            store,
            role="orchestrator",
            work="runner",
            owner=owner,
            settings=QUICK,
            on_acquired=self._acquired,
            on_lost=self._lost,
        )
        self.working: dict[int, int] = {}
        """Partition to epoch: whose work goes on."""
        self.changed = changed or asyncio.Event()
        """Set at every change of this replica's partitions, and of those that share the event."""

    def _acquired(self, partition: int, epoch: int) -> None:
        assert partition not in self.working
        self.working[partition] = epoch
        self.changed.set()

    def _lost(self, partition: int) -> None:
        del self.working[partition]
        self.changed.set()

    async def until(self, reached: Callable[[], bool]) -> None:
        """Waits for what a change of the partitions brings about."""
        async with asyncio.timeout(BOUND):
            while not reached():
                self.changed.clear()
                await self.changed.wait()


class Faulty:
    """The store's stub; the calls of the methods in `silent` are never answered, those in `refused` are refused."""

    def __init__(self, stub: StoreServiceStub) -> None:
        self._stub = stub
        self.silent: set[str] = set()
        self.refused: set[str] = set()
        self.answered: Counter[str] = Counter()
        self.met = asyncio.Event()
        """Set at every fault and every answer."""

    def __getattr__(self, method: str) -> Callable[..., Any]:
        async def call(request: Any, **options: Any) -> Any:
            if method in self.refused:
                self.met.set()
                raise Unavailable
            if method in self.silent:
                self.met.set()
                await asyncio.Event().wait()
            response = await getattr(self._stub, method)(request, **options)
            self.answered[method] += 1
            self.met.set()
            return response

        return call

    async def until_answered(self, method: str, count: int) -> None:
        """Waits until `count` more calls of the method are answered."""
        goal = self.answered[method] + count
        async with asyncio.timeout(BOUND):
            while self.answered[method] < goal:
                self.met.clear()
                await self.met.wait()


@asynccontextmanager
async def replica(store: Any, owner: str, changed: asyncio.Event | None = None) -> AsyncIterator[Replica]:
    started = Replica(store, owner, changed)
    started.partitions.start()
    try:
        yield started
    finally:
        await started.partitions.aclose()


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[StoreServiceStub]:
    async with store_stub(database_url) as stub:
        yield stub


async def holders(store: StoreServiceStub) -> dict[str, str]:
    """Lease to owner, as the store has it."""
    response = await store.ListLeases(store_pb2.ListLeasesRequest(prefix="orchestrator/runner/", page_size=1000))
    return {lease.name: lease.owner for lease in response.leases}


def sizes(replicas: Iterable[Replica]) -> list[int]:
    return sorted(len(replica.working) for replica in replicas)


async def test_one_replica_holds_every_partition_with_the_stores_own_epochs(store: StoreServiceStub) -> None:
    async with replica(store, "one") as one:
        await one.until(lambda: len(one.working) == COUNT)
        assert one.partitions.owned() == list(range(COUNT))
        leases = await store.ListLeases(store_pb2.ListLeasesRequest(prefix="orchestrator/runner/"))
        assert {lease.name: lease.epoch for lease in leases.leases} == {
            lease_name("orchestrator", "runner", partition): epoch for partition, epoch in one.working.items()
        }
        assert await holders(store) == {lease_name("orchestrator", "runner", n): "one" for n in range(COUNT)}


async def test_replicas_that_come_get_their_share_and_what_one_leaves_is_taken_up(store: StoreServiceStub) -> None:
    async with replica(store, "one") as one:
        await one.until(lambda: len(one.working) == COUNT)
        async with replica(store, "two", one.changed) as two:
            await two.until(lambda: sizes([one, two]) == [8, 8])
            async with replica(store, "three", one.changed) as three:
                await three.until(lambda: sizes([one, two, three]) == [5, 5, 6])
                assert sorted([*one.working, *two.working, *three.working]) == list(range(COUNT))
            await one.until(lambda: sizes([one, two]) == [8, 8])
        await one.until(lambda: len(one.working) == COUNT)


async def test_a_partition_that_changes_hands_gets_a_higher_epoch(store: StoreServiceStub) -> None:
    async with replica(store, "one") as one:
        await one.until(lambda: len(one.working) == COUNT)
        before = dict(one.working)
        async with replica(store, "two") as two:
            await two.until(lambda: len(two.working) == 8)
            assert all(epoch > before[partition] for partition, epoch in two.working.items())


async def test_a_replica_that_keeps_renewing_keeps_its_partitions_and_their_epochs(store: StoreServiceStub) -> None:
    watched = Faulty(store)
    async with replica(watched, "one") as one:
        await one.until(lambda: len(one.working) == COUNT)
        before = dict(one.working)
        one.changed.clear()
        # Three fill the time of a lease that nobody renews.
        await watched.until_answered("RenewLeases", 4)
        assert not one.changed.is_set()
        assert one.working == before


@pytest.mark.parametrize("fault", ["silent", "refused"])
async def test_a_replica_whose_renewals_meet_no_answer_stops_its_work_before_another_may_begin(
    store: StoreServiceStub, fault: str
) -> None:
    faulty = Faulty(store)
    async with replica(faulty, "one") as one:
        await one.until(lambda: len(one.working) == COUNT)
        getattr(faulty, fault).update({"RenewLeases", "AcquireLease", "ListLeases"})
        await one.until(lambda: not one.working)
        assert set((await holders(store)).values()) == {"one"}
        async with replica(store, "two") as two:
            await two.until(lambda: len(two.working) == COUNT)


async def test_a_replica_goes_on_by_itself_when_the_store_is_back(store: StoreServiceStub) -> None:
    faulty = Faulty(store)
    faulty.refused.add("DescribeStore")
    async with replica(faulty, "one") as one:
        # Nothing is answered before it.
        await asyncio.wait_for(faulty.met.wait(), BOUND)
        faulty.refused.clear()
        await one.until(lambda: len(one.working) == COUNT)
        faulty.refused.add("RenewLeases")
        await one.until(lambda: not one.working)
        faulty.refused.clear()
        await one.until(lambda: len(one.working) == COUNT)


async def test_a_lease_that_another_has_is_lost_at_the_next_renewal(store: StoreServiceStub) -> None:
    async with replica(store, "one") as one:
        await one.until(lambda: len(one.working) == COUNT)
        name = lease_name("orchestrator", "runner", 3)
        await store.ReleaseLease(store_pb2.ReleaseLeaseRequest(name=name, owner="one", epoch=one.working[3]))
        taking = store_pb2.AcquireLeaseRequest(name=name, owner="thief")
        taking.ttl.FromSeconds(60)
        assert (await store.AcquireLease(taking)).acquired
        await one.until(lambda: 3 not in one.working)
        assert 3 not in one.partitions.owned()
        assert len(one.working) == COUNT - 1


async def test_a_replica_that_ends_stops_its_work_and_leaves_no_lease(store: StoreServiceStub) -> None:
    async with replica(store, "one") as one:
        await one.until(lambda: len(one.working) == COUNT)
    assert not one.working
    response = await store.ListLeases(store_pb2.ListLeasesRequest(prefix="orchestrator/"))
    assert not response.leases


async def test_a_replica_ends_also_when_the_store_is_away(store: StoreServiceStub) -> None:
    faulty = Faulty(store)
    async with replica(faulty, "one") as one:
        await one.until(lambda: len(one.working) == COUNT)
        faulty.refused.add("ReleaseLease")
    assert not one.working


async def test_the_stores_partition_of_a_key_is_the_chassis_one(store: StoreServiceStub) -> None:
    keys = [f"workflow/{n}" for n in range(50)]
    for key in keys:
        await store.TryCommit(commit(key))
    listed = (await store.ListOpenKeys(store_pb2.ListOpenKeysRequest(collection="workflow"))).keys
    assert {found.key: found.partition for found in listed} == {key: partition_of(key, COUNT) for key in keys}


def commit(key: str) -> store_pb2.TryCommitRequest:
    digest = blake3(key.encode())
    action = store_pb2.CommitAction(
        action_id=f"{digest.hexdigest()[:8]}-0000-4000-8000-000000000000", fingerprint=digest.digest(), type="opened"
    )
    request = store_pb2.TryCommitRequest(key=key, state_json="{}", actions=[action])
    request.expected.absent.SetInParent()
    return request


@given(key=st.text(), count=st.integers(1, 1000))
@settings(max_examples=50)
def test_a_keys_partition_is_its_digests_first_eight_bytes(key: str, count: int) -> None:
    assert partition_of(key, count) == int(blake3(key.encode()).hexdigest()[:16], 16) % count


@given(members=st.sets(st.text(min_size=1), min_size=1, max_size=20), count=st.integers(1, 64))
@settings(max_examples=50)
def test_shares_are_fair_and_sum_to_all_partitions(members: set[str], count: int) -> None:
    shares = [fair_share(member, members, count) for member in members]
    assert sum(shares) == count
    assert max(shares) - min(shares) <= 1


def test_a_replica_counts_itself_before_the_store_does() -> None:
    assert fair_share("two", ["one"], COUNT) == COUNT // 2


def test_a_margin_that_leaves_no_time_to_renew_is_refused() -> None:
    with pytest.raises(ValidationError, match="margin_seconds must be less"):
        PartitionSettings(ttl_seconds=3, margin_seconds=1)


class ManyPartitions:
    """A store of more partitions than one call renews."""

    count = 600

    def __init__(self) -> None:
        self.renewed: list[int] = []
        self.renewed_twice = asyncio.Event()
        self._owners: dict[str, str] = {}

    async def DescribeStore(self, _request: Any, **_options: Any) -> store_pb2.DescribeStoreResponse:
        return store_pb2.DescribeStoreResponse(partition_count=self.count)

    async def ListLeases(self, _request: Any, **_options: Any) -> store_pb2.ListLeasesResponse:
        leases = [store_pb2.Lease(name=name, owner=owner) for name, owner in self._owners.items()]
        return store_pb2.ListLeasesResponse(leases=leases)

    async def AcquireLease(self, request: Any, **_options: Any) -> store_pb2.AcquireLeaseResponse:
        self._owners[request.name] = request.owner
        return store_pb2.AcquireLeaseResponse(acquired=True, lease=store_pb2.Lease(name=request.name, epoch=1))

    async def RenewLeases(self, request: Any, **_options: Any) -> store_pb2.RenewLeasesResponse:
        self.renewed.append(len(request.leases))
        if len(self.renewed) == 4:
            self.renewed_twice.set()
        return store_pb2.RenewLeasesResponse(leases=[store_pb2.RenewedLease(held=True) for _ in request.leases])

    async def ReleaseLease(self, _request: Any, **_options: Any) -> store_pb2.ReleaseLeaseResponse:
        return store_pb2.ReleaseLeaseResponse(released=True)


async def test_more_partitions_than_one_call_renews_are_held_on() -> None:
    store = ManyPartitions()
    one = Replica(store, "one")
    one.partitions.start()
    try:
        await one.until(lambda: len(one.working) == store.count)
        await asyncio.wait_for(store.renewed_twice.wait(), BOUND)
        assert store.renewed[:4] == [500, 101, 500, 101]
        assert len(one.working) == store.count
    finally:
        await one.partitions.aclose()
